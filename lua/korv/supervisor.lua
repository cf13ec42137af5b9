--- The parent of N workers: accepts connections and hands each to the worker that has the fewest, has all workers take a new generation or
-- none, and fills the place of one that ends. Knows neither SSH nor the app, so nothing that an endpoint does can harm it.
-- @module korv.supervisor

local child = require "korv.child"
local log = require "korv.log"
local transaction = require "korv.transaction"
local uv = require "luv"

local Supervisor = {}
Supervisor.__index = Supervisor

local supervisor = {}

-- Seconds without a sign of life after which a worker is killed.
supervisor._watchdog_seconds = 10

local BACKLOG = 4096      -- connections that nobody has accepted yet, each socket; as in the socket unit, for whoever listens last sets it
local GRACE = 3           -- seconds that a worker has after the time to drain
local LEAST_WATCHDOG = 2  -- seconds: a sign of life comes each second

local function ignore() end

-- Connections ------------------------------------------------------------------------------------------------------------------------

-- libuv accepts one connection ahead and then waits until it is taken: so no more than one a socket is ours before a worker is ready.
local function take_from(listener)
  local tcp = uv.new_tcp()
  listener.waiting = false
  if listener.handle:accept(tcp) then return tcp end
  tcp:close()
end

local function take(self)
  local tcp = table.remove(self.returned, 1)
  if tcp then return tcp end
  for _, listener in ipairs(self.listeners) do
    tcp = listener.waiting and take_from(listener)
    if tcp then return tcp end
  end
end

local function is_anybody_waiting(self)
  if #self.returned > 0 then return true end
  for _, listener in ipairs(self.listeners) do
    if listener.waiting then return true end
  end
  return false
end

-- Of those with the fewest the one that is next in turn.
local function choose(self)
  local best
  for i = 0, #self.workers - 1 do
    local worker = self.workers[(self.turn + i) % #self.workers + 1]
    if worker:takes_connections() and not (best and best.connections <= worker.connections) then best = worker end
  end
  if best then self.turn = best.number end
  return best
end

local deal

-- A connection that its worker cannot have taken goes to another one.
local function give_back(self, tcp)
  if self.ending then return tcp:close() end
  self.returned[#self.returned + 1] = tcp
end

local function hand_over(self, worker, tcp)
  local process = worker.process
  worker.connections = worker.connections + 1
  local sent = worker:send({ kind = "connection" }, tcp, function(problem)
    if not problem then
      tcp:close()
    else
      if worker.process == process then worker.connections = worker.connections - 1 end
      give_back(self, tcp)
    end
    deal(self)
  end)
  if not sent then give_back(self, tcp) end
end

-- Hands over what waits, as long as there is somebody to take it.
function deal(self)
  while not self.ending and is_anybody_waiting(self) do
    local worker = choose(self)
    if not worker then return end
    local tcp = take(self)
    if tcp then hand_over(self, worker, tcp) end
  end
end

-- One line a second at most.
local function complain(self, problem)
  if self.complained and uv.now() - self.complained < 1000 then return end
  self.complained = uv.now()
  log.warn("cannot accept a connection: %s", problem)
end

local function listen(self, fd)
  local listener = { handle = uv.new_tcp(), waiting = false }
  self.listeners[#self.listeners + 1] = listener
  local ok, problem, name = listener.handle:open(fd)
  if ok then
    ok, problem, name = listener.handle:listen(BACKLOG, function(failed)
      if failed then return complain(self, failed) end
      listener.waiting = true
      deal(self)
    end)
  end
  if ok then return true end
  return nil, ("cannot listen on the socket %d: %s"):format(fd, problem), name
end

local function close_listeners(self)
  for _, listener in ipairs(self.listeners) do listener.handle:close() end
  self.listeners = {}
end

local function stop_listening(self)
  close_listeners(self)
  for _, tcp in ipairs(self.returned) do tcp:close() end
  self.returned = {}
end

-- Workers ------------------------------------------------------------------------------------------------------------------------------

local function each(self, state, fn)
  for _, worker in ipairs(self.workers) do
    if worker.state == state then fn(worker) end
  end
end

local function count(self, state)
  local n = 0
  each(self, state, function() n = n + 1 end)
  return n
end

local function appoint_watcher(self)
  if self.watcher and self.watcher.state == "ready" then return end
  self.watcher = nil
  each(self, "ready", function(worker) self.watcher = self.watcher or worker end)
  if self.watcher then self.watcher:send { kind = "watch" } end
end

local function make_ready(self, worker)
  worker.state = "ready"
  appoint_watcher(self)
  if not self.started and count(self, "ready") == #self.workers then
    self.started = true
    self.on_start(worker.info)
  end
  deal(self)
end

-- A worker loads from disk when it starts, under the number that held then. What a transaction has changed since, it takes alone; what one
-- is about to change, with the others. It gets connections when it has the number that holds.
local function settle(self, worker)
  if self.transaction then return self.transaction:join(worker) end
  if worker.generation == self.generation then return make_ready(self, worker) end
  transaction(self.generation, { worker }, self.options.load_limit + 5, function(failure)
    if not failure then return settle(self, worker) end
    log.error("%s cannot load generation %d and is killed: %s", worker.name, self.generation, failure)
    worker:kill()
  end)
end

local handlers = {}

function handlers.ready(self, worker, message)
  if worker.state ~= "loading" then return end
  worker.state, worker.info = "settling", message.info
  if not self.ending then settle(self, worker) end
end

function handlers.failed(_, worker, message) worker.failure = message.message end

function handlers.beat(self, worker, message)
  worker.counters = message.counters
  deal(self)
end

function handlers.closed(_, worker, message) worker.connections = math.max(0, worker.connections - message.count) end

function handlers.prepared(_, worker, message)
  if worker.transaction then worker.transaction:answer(worker, message.attempt, message.message) end
end

function handlers.reload(self, worker)
  local process = worker.process
  self:reload(function(_, problem)
    if worker.process == process then worker:send { kind = "reloaded", message = problem } end
  end)
end

-- A message a worker, each once the one before was written, so that no more than one waits in the pipe: they may be large.
function handlers.metrics(self, worker, message)
  local process, last = worker.process, 0
  local function send_next(problem)
    if problem or worker.process ~= process then return end
    repeat last = last + 1 until not self.workers[last] or self.workers[last].counters.endpoints
    local one = self.workers[last]
    if not one then return worker:send { kind = "metrics", ask = message.ask, reloads = self.reload_counts } end
    worker:send({ kind = "metrics", ask = message.ask, worker = last, starts = one.starts, counters = one.counters }, nil, send_next)
  end
  send_next()
end

function handlers.keys_changed(self) self:reload_keys() end

function handlers.draining(_, worker)
  if worker.state == "ready" then worker.state = "lost" end
end

-- Once everybody is gone.
local function finish(self)
  for _, worker in ipairs(self.workers) do
    if worker.process then return end
  end
  for _, timer in ipairs(self.timers) do timer:close() end
  local gone = self.gone
  self.timers, self.gone = {}, {}
  for _, done in ipairs(gone) do done() end
end

-- Ends all of it because the start failed.
local function give_up(self, message, name)
  table.insert(self.gone, function() self.on_start(nil, message, name) end)
  self:stop()
end

local start_again

local function replace(self, worker, how)
  local seconds = worker:replace(function() start_again(self, worker) end)
  log.warn("%s; another one is started in %g s", how, seconds)
end

function start_again(self, worker)
  local ok, message = worker:start(self.generation)
  if not ok then replace(self, worker, message) end
end

local function on_ended(self, worker, how)
  if worker.transaction then worker.transaction:lose(worker) end
  if self.ending then return finish(self) end
  local failure = worker.failure
  if not self.started and not worker.info then return give_up(self, failure or how .. " before it was ready") end
  worker.info, worker.failure = nil, nil
  replace(self, worker, failure and ("%s: %s"):format(how, failure) or how)
  appoint_watcher(self)
end

local function start_workers(self)
  for _, worker in ipairs(self.workers) do
    local ok, message, name = worker:start(self.generation)
    if not ok then return nil, message, name end
  end
  return true
end

local function check(options)
  local function refuse(...) error("korv.supervisor: " .. string.format(...), 4) end
  if type(options.argv) ~= "table" or type(options.argv[1]) ~= "string" then
    refuse "argv must be a list: the program that is a worker, and its arguments"
  end
  if type(options.sockets) ~= "table" or #options.sockets == 0 then refuse "sockets must be a list of listening sockets" end
  if math.type(options.workers) ~= "integer" or options.workers < 1 then refuse "workers must be a whole number from 1 on" end
  if options.watchdog < LEAST_WATCHDOG then refuse("watchdog must be at least %d s: workers are heard of each second", LEAST_WATCHDOG) end
end

--- Makes a supervisor; `start` begins.
-- @tparam table options
--
-- - `argv` the program that is a worker, and its arguments. It has KORV_WORKER, its number, and KORV_GENERATION in its environment, and
--   calls `korv.worker`
-- - `env` further variables for it
-- - `sockets` a list of listening sockets' file descriptors
-- - `workers` how many
-- - `watchdog` seconds without a sign of life after which a worker is killed and replaced (10)
-- - `load_limit` seconds that loading the scripts may take (10)
-- @treturn Supervisor
function supervisor.new(options)
  options = {
    argv = options.argv, env = options.env, sockets = options.sockets, workers = options.workers,
    watchdog = options.watchdog or supervisor._watchdog_seconds, load_limit = options.load_limit or 10,
  }
  check(options)
  local self = setmetatable({
    options = options, workers = {}, listeners = {}, returned = {}, wanted = {}, timers = {}, gone = {}, turn = 0, generation = 1,
    reload_counts = { done = 0, failed = 0 },
    --- The listening sockets' file descriptors, until it drains or stops.
    sockets = options.sockets,
  }, Supervisor)
  local events = {
    message = function(worker, message)
      local handler = handlers[message.kind]
      if handler then handler(self, worker, message) end
    end,
    ended = function(worker, how) on_ended(self, worker, how) end,
  }
  for i = 1, options.workers do self.workers[i] = child.new(i, options, events) end
  return self
end

-- A timer that is closed once everybody is gone.
local function start_timer(self, seconds, again, fn)
  local timer, ms = uv.new_timer(), math.ceil(seconds * 1000)
  self.timers[#self.timers + 1] = timer
  timer:start(ms, again and ms or 0, fn)
end

--- Listens and starts the workers; the caller runs the loop.
-- @tparam function done called with what the last worker announced once all are ready; or with nil and a message, and a name where there
-- is one, where a worker ended before: by then all have ended
function Supervisor:start(done)
  self.on_start = done
  start_timer(self, self.options.watchdog / child.TICKS, true, function()
    for _, worker in ipairs(self.workers) do worker:tick() end
  end)
  for _, fd in ipairs(self.sockets) do
    local ok, message, name = listen(self, fd)
    if not ok then return give_up(self, message, name) end
  end
  local ok, message, name = start_workers(self)
  if not ok then give_up(self, message, name) end
end

-- Reload ---------------------------------------------------------------------------------------------------------------------------------

local function ready_workers(self)
  local list = {}
  each(self, "ready", function(worker) list[#list + 1] = worker end)
  return list
end

local begin

-- Tells those who asked, and goes on with what was asked for meanwhile.
local function conclude(self, asked, failure)
  self.transaction = nil
  if failure then
    self.reload_counts.failed = self.reload_counts.failed + 1
    log.error("not reloaded, generation %d goes on: %s", self.generation, failure)
  else
    self.reload_counts.done = self.reload_counts.done + 1
    log.info("reloaded: generation %d", self.generation)
  end
  each(self, "settling", function(worker)
    if not worker.transaction then settle(self, worker) end
  end)
  for _, done in ipairs(asked) do done(not failure or nil, failure) end
  if #self.wanted > 0 and not self.transaction then begin(self) end
end

function begin(self)
  local asked, workers, number = self.wanted, ready_workers(self), self.generation + 1
  self.wanted = {}
  if self.ending or #workers == 0 then
    return conclude(self, asked, self.ending and "the server is stopping" or "no worker is ready")
  end
  self.transaction = transaction(number, workers, self.options.load_limit + 5, function(failure)
    if not failure then self.generation = number end
    conclude(self, asked, failure)
  end)
end

--- Has all workers load the scripts anew, and swap to what they loaded once all have succeeded. What is asked for meanwhile is done by one
-- more reload after this one.
-- @tparam[opt] function done called with true, or nil and a message
function Supervisor:reload(done)
  self.wanted[#self.wanted + 1] = done or ignore
  if not self.transaction then begin(self) end
end

--- Has all workers read authorized keys and host keys again. One that is loading gets to it later.
function Supervisor:reload_keys()
  for _, worker in ipairs(self.workers) do worker:send { kind = "keys" } end
end

--- What the workers told of themselves within the last second, added up.
-- @treturn table `connections`, `requests`, `generation`
function Supervisor:counters()
  local sums = { connections = 0, requests = 0, generation = self.generation }
  for _, worker in ipairs(self.workers) do
    sums.connections = sums.connections + (worker.counters.connections or 0)
    sums.requests = sums.requests + (worker.counters.requests or 0)
  end
  return sums
end

-- The end --------------------------------------------------------------------------------------------------------------------------------

local function kill_all(self)
  for _, worker in ipairs(self.workers) do worker:kill() end
end

--- Leaves its sockets to another process that has them, too. What it has accepted it hands over yet.
function Supervisor:leave_sockets()
  self.replaced = true
  for _, listener in ipairs(self.listeners) do
    local tcp = listener.waiting and take_from(listener)
    if tcp then self.returned[#self.returned + 1] = tcp end
  end
  close_listeners(self)
end

--- Takes no more connections and has the workers finish what they have. A worker that has not been ready has nothing, and is killed.
-- @tparam number seconds that requests under way have
-- @tparam[opt] function done called once all workers have ended, a little after `seconds` at the latest
function Supervisor:drain(seconds, done)
  self.gone[#self.gone + 1] = done
  if self.ending then return finish(self) end
  self.ending = true
  stop_listening(self)
  for _, worker in ipairs(self.workers) do
    if worker.state ~= "ready" and worker.state ~= "lost" then worker:kill() end
    worker:send { kind = "drain", seconds = seconds, replaced = self.replaced }
  end
  start_timer(self, seconds + GRACE, false, function() kill_all(self) end)
  finish(self)
end

--- Ends everything at once.
function Supervisor:stop()
  self.ending = true
  stop_listening(self)
  kill_all(self)
  finish(self)
end

return supervisor
