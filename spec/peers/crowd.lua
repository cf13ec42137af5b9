--- A spec's hand on crowd.py: many connections at once, and streams that are too long to keep.
-- @module spec.peers.crowd

local cjson = require "cjson"
local support = require "spec.support"

local crowd = {}
local Crowd = {}
Crowd.__index = Crowd

--- The two pairings that peers use: part 1's, and ours.
crowd.pairings = {
  { name = "direct-tcpip, gzip", way = "tcpip", encoding = "gzip" },
  { name = "subsystem, lines", way = "subsystem", encoding = "line" },
}

--- Starts it.
-- @treturn Crowd
function crowd.start()
  local process = support.start({ support.python, support.root .. "/spec/peers/crowd.py", "--key", support.key "client" }, { stdin = true })
  return setmetatable({ process = process }, Crowd)
end

--- Has it begin one thing, without waiting for the answer.
-- @string what a method of crowd.py
-- @tparam table pairing
-- @tparam table command
function Crowd:begin(what, pairing, command)
  command["do"], command.way, command.encoding = what, pairing.way, pairing.encoding
  if command.timeout then command.timeout = command.timeout * support.patience end
  self.process:write(cjson.encode(command) .. "\n")
end

--- Waits for the answer to what it was to do.
-- @number[opt] seconds
function Crowd:answer(seconds)
  local line = self.process:line(seconds or 60)
  if not line then
    self.process:kill()
    error(self.process:describe "did not answer", 2)
  end
  local answer = cjson.decode(line)
  if answer.error then error("crowd.py: " .. answer.error, 2) end
  return answer
end

--- Has it do one thing and returns what it says.
function Crowd:order(what, pairing, command, seconds)
  self:begin(what, pairing, command)
  return self:answer(seconds)
end

return crowd
