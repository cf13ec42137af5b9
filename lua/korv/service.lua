--- A server's life as a process: signals, draining, the hand-over to the next server, and what systemd is told of it. What it runs is a
-- `thing`: a Server or a Supervisor. Knows neither connections nor scripts.
-- @module korv.service

local core = require "korv.core"
local log = require "korv.log"
local notify = require "korv.notify"
local uv = require "luv"

local Service = {}
Service.__index = Service

local service = {}

local DRAIN = 30       -- seconds
local FIRST_FD = 3     -- of what systemd or the server before passes on
local MOST_SOCKETS = 64

-- Seconds that the next server may take until it is ready.
service._ready_seconds = 60

-- Seconds that those who had connected before the next server was ready are served as ever: in the midst of a log-in, or between that and
-- the first request, they would take a drain for a refusal.
service._linger_seconds = 3

-- What a server is told by whoever starts it. A child process of an endpoint's must not take it for its own.
local INHERITED = { "KORV_SOCKETS", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES" }

-- The child's side ------------------------------------------------------------------------------------------------------------------

local ready_fd -- where the server before hears that this one is ready

local function take_environment()
  local found = {}
  for _, name in ipairs(INHERITED) do
    found[name] = os.getenv(name)
    uv.os_unsetenv(name)
  end
  return found
end

local function inherit(fd)
  local listening, message, name = core.inherit(fd)
  if listening == nil then return nil, ("the inherited file descriptor %d: %s"):format(fd, message), name end
  return listening
end

local function inherit_sockets(count)
  local fds = {}
  for fd = FIRST_FD, FIRST_FD + count - 1 do
    local listening, message, name = inherit(fd)
    if listening == nil then return nil, message, name end
    if not listening then return nil, ("the inherited file descriptor %d is no socket that listens"):format(fd), "ENOTSOCK" end
    fds[#fds + 1] = fd
  end
  return fds
end

--- The listening sockets that came from systemd or from the server before this one. What was said about them in the environment is gone
-- afterwards; so is what systemd wants to be told.
-- @treturn ?{int,...} nil: none came, or
-- @treturn ?string what is wrong with them
-- @treturn ?string name, such as `EBADF`
function service.inherited()
  notify.take()
  local said = take_environment()
  local count = said.KORV_SOCKETS
  if not count and tonumber(said.LISTEN_PID) == uv.os_getpid() then count = said.LISTEN_FDS end
  count = math.tointeger(tonumber(count))
  if not count or count < 1 or count > MOST_SOCKETS then return nil end
  local fds, message, name = inherit_sockets(count)
  if fds and said.KORV_SOCKETS then
    local ok
    ok, message, name = inherit(FIRST_FD + count)
    if ok == nil then return nil, message, name end
    ready_fd = FIRST_FD + count
  end
  return fds, message, name
end

--- Says that this server serves: to the one before, if it was started for an upgrade, and to systemd.
function service.ready()
  if ready_fd then
    uv.fs_write(ready_fd, "1", -1) -- where that server has ended meanwhile there is nobody to tell
    uv.fs_close(ready_fd)
    ready_fd = nil
  end
  notify.ready()
end

-- The upgrade: the parent's side ----------------------------------------------------------------------------------------------------

--- The words that this process was started with, interpreter first.
-- @treturn {string,...}
function service.argv()
  local words, first = {}, 0
  local given = arg or {}
  while given[first - 1] do first = first - 1 end
  for i = first, #given do words[#words + 1] = given[i] end
  return words
end

local function environment_of_next(sockets)
  local variables = uv.os_environ()
  for name, value in pairs(notify.environment()) do variables[name] = value end
  variables.KORV_SOCKETS = tostring(#sockets)
  local list = {}
  for name, value in pairs(variables) do list[#list + 1] = name .. "=" .. value end
  return list
end

local function end_wait(self)
  local upgrade = self.upgrade
  self.upgrade = nil
  upgrade.pipe:close()
  upgrade.timer:close()
  return upgrade
end

local function kill_next(self) uv.kill(end_wait(self).pid, "sigkill") end

local function fail_upgrade(reason, ...) log.error("the upgrade failed: " .. reason .. "; this server goes on", ...) end

local function give_up_upgrade(self)
  if not self.upgrade then return end
  kill_next(self)
  log.warn "the upgrade is given up: this server is to end"
end

local function hand_over(self)
  local upgrade = end_wait(self)
  log.info("the next server (process %d) is ready; this one finishes what is under way", upgrade.pid)
  notify.main_pid(upgrade.pid)
  self.thing:leave_sockets()
  self.is_replaced = true
  local linger = uv.new_timer()
  self.handles[#self.handles + 1] = linger
  linger:start(math.floor(service._linger_seconds * 1000), 0, function() self:drain() end)
end

-- What it writes when it is ready; nothing is to be read any more once it has ended.
local function on_pipe(self, data)
  if data then return hand_over(self) end
  end_wait(self)
  fail_upgrade "the next server ended before it was ready"
end

-- It is no child of this process: systemd takes none but its own children for a main process that it waits for.
local function spawn_next(sockets, argv)
  local ends, message = uv.pipe({ nonblock = true }, {})
  if not ends then return nil, message end
  local fds = table.move(sockets, 1, #sockets, 1, {})
  fds[#fds + 1] = ends.write
  core.close_on_exec(FIRST_FD) -- files that the app has open would gather from server to server
  local pid
  pid, message = core.start_orphan(argv, environment_of_next(sockets), fds)
  uv.fs_close(ends.write)
  if pid then return pid, ends.read end
  uv.fs_close(ends.read)
  return nil, ("%s: %s"):format(argv[1], message)
end

local function start_next(self, argv)
  local pid, problem_or_fd = spawn_next(self.thing.sockets, argv)
  if not pid then return fail_upgrade("%s", problem_or_fd) end
  local upgrade = { pid = pid, pipe = uv.new_pipe(false), timer = uv.new_timer() }
  self.upgrade = upgrade
  log.info("upgrade: started the next server (process %d)", pid)
  upgrade.timer:start(math.floor(service._ready_seconds * 1000), 0, function()
    kill_next(self)
    fail_upgrade("the next server was not ready within %g s", service._ready_seconds)
  end)
  upgrade.timer:unref()
  upgrade.pipe:open(problem_or_fd)
  upgrade.pipe:read_start(function(_, data) on_pipe(self, data) end)
  upgrade.pipe:unref()
end

--- Starts the next server; it gets the sockets.
function Service:begin_upgrade()
  local argv = self.options.argv or service.argv()
  local refusal = self.upgrade and "one is under way already" or (self.draining or self.is_replaced) and "this server is about to end"
    or not argv[1] and "it is not known how this server was started"
  if refusal then return log.warn("no upgrade: %s", refusal) end
  start_next(self, argv)
end

-- Reload and stop -------------------------------------------------------------------------------------------------------------------

--- Reads the keys again and has the scripts loaded again.
function Service:reload()
  if self.draining then return end
  self.thing:reload_keys()
  self.reloads = self.reloads + 1
  notify.reloading()
  self.thing:reload(function()
    self.reloads = self.reloads - 1
    if self.reloads == 0 and not self.draining then notify.ready() end
  end)
end

--- No new connections; ends when what is under way has ended.
function Service:drain()
  if self.draining then return end
  self.draining = true
  self.thing:drain(self.options.drain or DRAIN, function() uv.stop() end)
end

--- SIGTERM or SIGINT: the first one lets what is under way finish, the second one does not.
-- @tparam string name
function Service:terminate(name)
  if self.told_to_end then
    log.warn("%s again: what is under way is cut off", name)
    self.thing:stop()
    return uv.stop()
  end
  self.told_to_end = true
  log.info("%s: finishing what is under way, for %g s at most", name, self.options.drain or DRAIN)
  give_up_upgrade(self)
  notify.stopping()
  self:drain()
end

-- The loop --------------------------------------------------------------------------------------------------------------------------

local SIGNALS = {
  sighup = Service.reload, sigusr2 = Service.begin_upgrade,
  sigterm = function(self) self:terminate "SIGTERM" end, sigint = function(self) self:terminate "SIGINT" end,
}

local function listen_to_signals(self)
  for name, handler in pairs(SIGNALS) do
    local signal = uv.new_signal()
    signal:start(name, function() handler(self) end)
    signal:unref()
    self.handles[#self.handles + 1] = signal
  end
end

local function clean_up(self)
  give_up_upgrade(self)
  for _, handle in ipairs(self.handles) do handle:close() end
  notify.close()
  uv.run "nowait" -- luv does not survive the end of a program with handles that are half closed
end

--- Says that the thing serves, and runs the loop until it has drained, was stopped, or leaves nothing to run.
--
-- SIGHUP reloads scripts and keys. SIGTERM and SIGINT drain, a second one ends at once. SIGUSR2 starts the next server with the same
-- sockets; once that is ready this one leaves the sockets to it, and drains a little later.
-- @tparam Server|Supervisor thing with `sockets`, `reload`, `reload_keys`, `leave_sockets`, `drain`, `stop`
-- @tparam[opt] table options `drain`: seconds for what is under way (30); `argv`: the command that starts the next server, interpreter
-- first (that of this process); `announce`: a function that says that it serves, called once signals are listened to
function service.run(thing, options)
  local self = setmetatable({ thing = thing, options = options or {}, reloads = 0, handles = {} }, Service)
  listen_to_signals(self)
  if self.options.announce then self.options.announce() end
  service.ready()
  uv.run()
  clean_up(self)
end

return service
