--- Functions that run again and again: `korv.every`. Knows nothing of generations but that a timer may have to wait for its start.
-- @module korv.every

local core = require "korv.core"
local uv = require "luv"

local every = {}

local Timer = {}
Timer.__index = Timer

local LONGEST = 1e9 -- seconds

local function now() return uv.hrtime() / 1e9 end

-- Due times are `seconds` apart. Those that a run has outlasted are left out.
local function arm(self)
  if not self.timer then return end
  self.due = self.due + self.seconds
  local late = now() - self.due
  if late > 0 then self.due = self.due + math.ceil(late / self.seconds) * self.seconds end
  self.timer:start(self.due - now(), true)
end

-- The variable is closed however the run ends: by an error or by the watchdog, too.
local function run(self)
  local again <close> = setmetatable({}, { __close = function() arm(self) end }) -- luacheck: ignore 211
  if self.timer then self.fn() end
end

--- A timer that has not begun.
-- @tparam number seconds between the beginnings of two runs
-- @tparam function fn
-- @tparam[opt=1] int level whose mistake an error is, as in `error`
-- @treturn Timer
function every.new(seconds, fn, level)
  level = (level or 1) + 1
  if type(seconds) ~= "number" or not (seconds >= 0.001 and seconds <= LONGEST) then
    error(("korv.every: seconds, the first argument, is a number from 0.001 on (got %s)"):format(tostring(seconds)), level)
  end
  if type(fn) ~= "function" then
    error(("korv.every: the second argument is the function to run (got a %s)"):format(type(fn)), level)
  end
  return setmetatable({ seconds = seconds, fn = fn }, Timer)
end

--- Begins, unless it was stopped; the first run is one interval away. It does not keep the loop alive.
-- The core's timer is held while it runs, and with it what its function holds.
function Timer:start()
  if self.timer or self.stopped then return end
  self.timer = core.timer(function() core.spawn(run, self) end)
  self.due = now()
  arm(self)
end

--- Ends; a run under way goes on.
function Timer:stop()
  if self.timer then self.timer:stop() end
  self.timer, self.stopped = nil, true
end

return every
