--- A worker's end of the pipe: a server that listens on nothing and adopts the connections that its supervisor hands it, reloads when all
-- do, and tells that it is alive. Knows of the server its methods, and of the supervisor what `korv.ipc` brings.
-- @module korv.worker

local core = require "korv.core"
local ipc = require "korv.ipc"
local log = require "korv.log"
local uv = require "luv"
local watch = require "korv.watch"

local Worker = {}
Worker.__index = Worker

local worker = {}

local PIPE_FD = 3
local DRAIN = 30            -- seconds, where nobody says how many
local BEAT_MS = 1000
local COLLECTED = 0.05      -- seconds in which closed connections are counted before they are told
local MESSAGE_BYTES = 16384 -- of why a load failed; more is cut off
local GATHERED = 2          -- seconds in which the supervisor is to have told what all workers count

local pipe_fd -- once it was taken

local function ignore() end

-- A text that is JSON's whatever an error message is made of.
local function text_of(message)
  message = tostring(message):sub(1, MESSAGE_BYTES)
  if utf8.len(message) then return message end
  return (message:gsub("[\x80-\xFF]", function(byte) return ("\\x%02x"):format(byte:byte()) end))
end

-- Connections ------------------------------------------------------------------------------------------------------------------------

local function on_closed(self, count)
  if self.closed == 0 then self.collecting:start(COLLECTED) end
  self.closed = self.closed + count
end

local function tell_closed(self)
  self.pipe:send { kind = "closed", count = self.closed }
  self.closed = 0
end

-- One line a second at most.
local function complain(self, problem)
  if self.complained and uv.now() - self.complained < 1000 then return end
  self.complained = uv.now()
  log.warn("cannot take a connection: %s", problem)
end

local function adopt(self, tcp)
  local ok, message = self.server:adopt(tcp:fileno())
  tcp:close()
  if ok then return end
  complain(self, message)
  on_closed(self, 1)
end

-- Reload ---------------------------------------------------------------------------------------------------------------------------------

-- The supervisor decides: what it answers, in the order of the questions, goes to those who asked.
local function coordinate(self, done)
  local ok, message = self.pipe:send { kind = "reload" }
  if not ok then return done(nil, message) end
  self.asked[#self.asked + 1] = done
end

local function on_change(self, what)
  if what == "keys" then
    self.pipe:send { kind = "keys_changed" }
  else
    coordinate(self, ignore)
  end
end

-- self.load is what was prepared, from the request until it is committed or dropped.
local function on_loaded(self, load, generation, message)
  load.generation = generation
  if not generation or load.dropped then self.load = nil end
  if load.dropped then
    if generation then self.server:discard(generation) end
    return
  end
  self.pipe:send { kind = "prepared", attempt = load.attempt, message = not generation and text_of(message) or nil }
end

local handlers = {}

function handlers.prepare(self, message)
  if self.load then
    self.pipe:send { kind = "prepared", attempt = message.attempt, message = "what was to be loaded before has not ended yet" }
    return
  end
  local load = { attempt = message.attempt }
  self.load = load
  self.server:prepare(message.number, function(generation, problem) on_loaded(self, load, generation, problem) end)
end

function handlers.commit(self, message)
  local load = self.load
  if not load or load.attempt ~= message.attempt then return end
  self.load = nil
  self.server:commit(load.generation)
end

function handlers.abort(self, message)
  local load = self.load
  if not load or load.attempt ~= message.attempt then return end
  load.dropped = true
  if not load.generation then return end -- on_loaded sees to it
  self.load = nil
  self.server:discard(load.generation)
end

function handlers.reloaded(self, message)
  local done = table.remove(self.asked, 1)
  if done then done(not message.message or nil, message.message) end
end

function handlers.keys(self) self.server:reload_keys() end

function handlers.drain(self, message)
  if message.replaced then self.server:leave_sockets() end
  self:drain(message.seconds)
end

function handlers.watch(self)
  if self.watches == false then return end
  local watcher = watch.new(function(what) on_change(self, what) end)
  local function set() watcher:set(self.server:watched()) end
  self.server.on_watched = set
  set()
end

-- Metrics --------------------------------------------------------------------------------------------------------------------------------

-- self.gathering is the question that is out, which has one answer for all who ask meanwhile.
local function gather(self, done)
  if not self.gathering then
    local ask = self.asks + 1
    local ok, message = self.pipe:send { kind = "metrics", ask = ask }
    if not ok then return done(nil, message) end
    self.asks, self.gathering = ask, { ask = ask, workers = {}, asked = {} }
    self.gather_patience:start(GATHERED)
  end
  table.insert(self.gathering.asked, done)
end

local function gathered(self, ...)
  local asked = self.gathering and self.gathering.asked or {}
  self.gathering = nil
  self.gather_patience:stop()
  for _, done in ipairs(asked) do done(...) end
end

-- A worker's numbers, and at last what the supervisor itself has counted.
function handlers.metrics(self, message)
  local gathering = self.gathering
  if not gathering or gathering.ask ~= message.ask then return end
  if message.reloads then return gathered(self, { workers = gathering.workers, reloads = message.reloads }) end
  local one = message.counters
  one.worker, one.starts = message.worker, message.starts
  table.insert(gathering.workers, one)
end

-- The end --------------------------------------------------------------------------------------------------------------------------------

--- Finishes what is under way; then `run` returns.
-- @tparam number seconds that requests have
function Worker:drain(seconds)
  if self.draining then return end
  self.draining = true
  self.pipe:send { kind = "draining" }
  self.server:drain(seconds, uv.stop)
end

-- Without a supervisor nobody hands over connections, and nobody would replace this process or end it.
local function on_pipe_end(self, reason)
  local asked = self.asked
  self.asked = {}
  for _, done in ipairs(asked) do done(nil, "the supervisor is gone") end
  gathered(self, nil, "the supervisor is gone")
  log.warn("the supervisor is gone (%s): this worker finishes what it has", reason)
  self:drain(self.drain_seconds)
end

-- Set-up ---------------------------------------------------------------------------------------------------------------------------------

--- Takes what makes this process a worker from where the programs that it runs would inherit it: the pipe, which one that outlives this
-- process would keep open, and what the environment says. To be called before anything of the app's runs.
-- @treturn ?int the pipe's file descriptor
-- @treturn ?string message
-- @treturn ?string name
function worker.take()
  if pipe_fd then return pipe_fd end
  if uv.guess_handle(PIPE_FD) ~= "pipe" then -- it may be the loop's own
    return nil, ("KORV_WORKER is set, but file descriptor %d is no supervisor's pipe: only korv starts workers"):format(PIPE_FD),
      "EINVAL"
  end
  local fd, problem, name = core.dup_cloexec(PIPE_FD)
  if not fd then return nil, "cannot use the supervisor's pipe: " .. problem, name end
  uv.fs_close(PIPE_FD)
  uv.os_unsetenv "KORV_WORKER"
  uv.os_unsetenv "KORV_GENERATION"
  pipe_fd = fd
  return fd
end

--- Tells the supervisor why this process is about to end without having become a worker.
-- @tparam string message
function worker.fail(message)
  uv.fs_write(pipe_fd, core.json.encode { kind = "failed", message = text_of(message) } .. "\n", -1) -- or nobody is there to be told
end

local function connect(self)
  local fd, problem, name = worker.take()
  if not fd then return nil, problem, name end
  local pipe = uv.new_pipe(true)
  local ok
  ok, problem, name = pipe:open(fd)
  if not ok then
    pipe:close()
    return nil, "cannot use the supervisor's pipe: " .. problem, name
  end
  self.pipe = ipc(pipe, {
    on_message = function(message)
      local handler = handlers[message.kind]
      if handler then handler(self, message) end
    end,
    on_handle = function(tcp) adopt(self, tcp) end,
    on_end = function(reason) on_pipe_end(self, reason) end,
  })
  return true
end

-- A terminal sends its signals to the whole group, and systemd sends SIGTERM to all of a unit.
local function heed_signals(self)
  local heeded = { sigint = ignore, sighup = ignore, sigusr2 = ignore, sigterm = function() self:drain(self.drain_seconds) end }
  for name, action in pairs(heeded) do
    local signal = uv.new_signal()
    signal:start(name, action)
    self.handles[#self.handles + 1] = signal
  end
end

local function beat(self)
  local timer = uv.new_timer()
  timer:start(0, BEAT_MS, function() self.pipe:send { kind = "beat", counters = self.server:counters() } end)
  self.handles[#self.handles + 1] = timer
end

--- Serves what the supervisor hands over, until it is told to drain or the supervisor is gone. For a process that has KORV_WORKER set. It
-- listens by itself.
-- @tparam Server server loaded, its first generation numbered KORV_GENERATION
-- @tparam[opt] table options `info`: what the supervisor's `start` is told; `drain`: seconds that requests have where the supervisor is
-- gone or SIGTERM came (30); `watch`: whether it watches for changes if it is asked to (true); `number`: its own
-- @treturn ?boolean true
-- @treturn ?string message
-- @treturn ?string name
function worker.run(server, options)
  if uv.loop_mode() then error("korv.worker: the loop runs already", 2) end
  options = options or {}
  local self = setmetatable({
    server = server, watches = options.watch, drain_seconds = options.drain or DRAIN, asked = {}, handles = {}, closed = 0, asks = 0,
  }, Worker)
  local ok, message, name = connect(self)
  if ok then ok, message, name = server:listen {} end
  if not ok then return nil, message, name end
  self.collecting = core.timer(function() tell_closed(self) end)
  self.gather_patience = core.timer(function() gathered(self, nil, ("the supervisor has not answered within %d s"):format(GATHERED)) end)
  server.worker, server.gather = options.number, function(done) gather(self, done) end
  server.coordinate = function(done) coordinate(self, done) end
  server.on_closed = function(count) on_closed(self, count) end
  heed_signals(self)
  self.pipe:send { kind = "ready", info = options.info or {} }
  beat(self)
  uv.run()
  for _, handle in ipairs(self.handles) do handle:close() end
  self.pipe:close()
  uv.run "nowait" -- luv does not survive the end of a program with handles that are half closed
  return true
end

return worker
