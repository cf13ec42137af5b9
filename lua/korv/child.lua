--- A worker as its supervisor sees it: a process in one of N places, the pipe to it, its signs of life, and the next process once it has
-- ended. Knows of the messages on the pipe only that each is a sign of life; what they mean is the supervisor's.
-- @module korv.child

local core = require "korv.core"
local ipc = require "korv.ipc"
local log = require "korv.log"
local uv = require "luv"

local Child = {}
Child.__index = Child

local LEAST_BACKOFF, MOST_BACKOFF = 0.1, 10 -- seconds before a place is filled again; the latter is also a life that is long enough

--- How many ticks make the time that a worker may be silent. Ticks are counted, not the clock: where the supervisor stood still itself
-- (Ctrl-Z, a debugger) no worker is to blame for what was not heard.
local TICKS = 10

local function environment(child, generation)
  local set = uv.os_environ()
  for name, value in pairs(child.options.env or {}) do set[name] = tostring(value) end
  set.KORV_WORKER, set.KORV_GENERATION = tostring(child.number), tostring(generation)
  local list = {}
  for name, value in pairs(set) do list[#list + 1] = name .. "=" .. value end
  return list
end

local function on_message(child, message)
  child.silent, child.patience = 0, TICKS
  child.events.message(child, message)
end

-- At the end of the pipe the process ends soon, or is silent for too long; but one that breaks the rules of the pipe is not waited for.
local function on_pipe_end(child, reason, name)
  child.state = "lost"
  if name == "EOF" then return end
  log.warn("%s: %s; it is killed", child:describe(), reason)
  child:kill()
end

local function describe_end(code, signal)
  return signal ~= 0 and ("was ended by signal %d"):format(signal) or ("ended with status %d"):format(code)
end

local function on_exit(child, code, signal)
  local how = ("%s %s"):format(child:describe(), describe_end(code, signal))
  child.process:close()
  child.pipe:close()
  child.process, child.state, child.connections, child.counters = nil, "away", 0, {}
  child.events.ended(child, how)
end

--- Makes a place that nobody fills yet.
-- @tparam int number
-- @tparam table options `argv`, `env`, `watchdog`, `load_limit` as for `korv.supervisor`
-- @tparam table events the functions `message(child, message)` and `ended(child, how)`
-- @treturn Child
local function new(number, options, events)
  return setmetatable({
    number = number, name = "worker " .. number, options = options, events = events, backoff = LEAST_BACKOFF,
    --- `away`: no process; `loading`: not heard of yet; `settling`: not of the current generation yet; `ready`; `lost`: to end soon.
    state = "away",
    --- How many connections it was handed and has not reported closed.
    connections = 0,
    --- What it told of itself last.
    counters = {},
    --- How many processes it has had.
    starts = 0,
  }, Child)
end

--- Starts its process.
-- @tparam int generation the number of what it is about to load
-- @treturn ?boolean true
-- @treturn ?string message
-- @treturn ?string name
function Child:start(generation)
  local argv, pipe = self.options.argv, uv.new_pipe(true)
  local process, pid, name = uv.spawn(argv[1], {
    args = table.move(argv, 2, #argv, 1, {}), env = environment(self, generation), stdio = { 0, 1, 2, pipe },
  }, function(code, signal) on_exit(self, code, signal) end)
  if not process then
    pipe:close()
    return nil, ("%s: cannot run %s: %s"):format(self.name, argv[1], pid), name
  end
  self.process, self.pid, self.generation, self.born = process, pid, generation, uv.now()
  self.state, self.silent, self.starts = "loading", 0, self.starts + 1
  self.patience = math.ceil((self.options.load_limit + 5) / self.options.watchdog * TICKS)
  self.pipe = ipc(pipe, {
    on_message = function(message) on_message(self, message) end,
    on_end = function(...) on_pipe_end(self, ...) end,
  })
  return true
end

--- Its name in the log.
-- @treturn string
function Child:describe() return ("%s (pid %d)"):format(self.name, self.pid or 0) end

--- Sends it a message; see `korv.ipc`. One that has no process is sent nothing.
-- @tparam table message
-- @tparam[opt] uv_tcp_t handle
-- @tparam[opt] function sent
-- @treturn ?boolean true
function Child:send(message, handle, sent) return self.process and self.pipe:send(message, handle, sent) end

--- Whether it may be handed a connection: it is ready, and has read what it was sent.
-- @treturn boolean
function Child:takes_connections() return self.state == "ready" and self.pipe:unsent() == 0 end

--- Fills the place again after a while: the longer, the more often its processes ended soon.
-- @tparam function start
-- @treturn number seconds till then
function Child:replace(start)
  if self.pid and uv.now() - self.born >= MOST_BACKOFF * 1000 then self.backoff = LEAST_BACKOFF end
  local seconds = self.backoff
  self.backoff = math.min(2 * seconds, MOST_BACKOFF)
  self.rest = core.timer(start)
  self.rest:start(seconds)
  return seconds
end

--- To be called `TICKS` times in as long as a worker may be silent: kills one that was.
function Child:tick()
  if not self.process then return end
  self.silent = self.silent + 1
  if self.silent ~= self.patience + 1 then return end
  local seconds = self.patience / TICKS * self.options.watchdog
  log.warn("%s gave no sign of life for %g s; it is killed", self:describe(), seconds)
  self:kill()
end

--- Ends its process at once, or sees to it that none is started.
function Child:kill()
  if self.rest then self.rest:stop() end
  if not self.process then return end
  self.state = "lost"
  self.process:kill "sigkill"
end

return { new = new, TICKS = TICKS }
