--- Endpoints that wait until a spec lets them go on.
-- @module spec.gates

local korv = require "korv"

local gates = {}

local closed = {} -- functions that let who waits go on

--- Waits, in an endpoint, until the gates open.
-- @treturn string "through"
function gates.wait()
  return korv.await(function(resume) closed[#closed + 1] = resume end)
end

--- Lets all who wait go on.
-- @treturn int how many waited
function gates.open()
  local waiting = closed
  closed = {}
  for _, resume in ipairs(waiting) do resume "through" end
  return #waiting
end

return gates
