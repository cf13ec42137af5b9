--- The server: its options, the app that answers, and its life: it listens, reloads, drains and stops.
-- @module korv.server

local core = require "korv.core"
local app = require "korv.app"
local check = require "korv.options"
local credentials = require "korv.credentials"
local generation = require "korv.generation"
local introspection = require "korv.introspection"
local log = require "korv.log"
local metrics = require "korv.metrics"
local responder = require "korv.responder"
local service = require "korv.service"
local task = require "korv.task"
local typed = require "korv.typed"
local uv = require "luv"
local watch = require "korv.watch"

local Server = {}
Server.__index = Server

-- Every option with its kind. What is not given takes its default from core or from here.
local OPTIONS = {
  host = "string", port = "number", host_keys = "files", passphrase = "string",
  authorized_client_keys = "file or files", authorize = "function",
  revoke = "string", tracebacks = "boolean", json = "codec", max_packet_size = "number",
  max_message_bytes = "number", max_packed_bytes = "number", max_response_bytes = "number", max_depth = "number",
  timeout = "number", max_in_flight = "number", max_in_flight_bytes = "number", max_channel_in_flight = "number",
  max_turn_bytes = "number", max_queued_bytes = "number",
  max_connections = "number", max_unauthenticated = "number", max_channels = "number", max_auth_attempts = "number",
  max_unauthenticated_per_address = "number", ciphers = "string", login_timeout = "seconds", keepalive = "number",
  cpu_limit = "seconds or 0", load_limit = "seconds", drain = "seconds", watch = "boolean", ways = "table",
  introspection = "string or false",
}

local CHOICES = { revoke = { "close", "keep" }, ciphers = { "modern", "compatible" } }
local WAYS = { tcpip = "boolean", subsystem = "boolean", exec = "boolean", shell = "boolean" }

local LAST_WORDS = 1 -- seconds for the answers to what a drain has cancelled

local function closed(server)
  return function(peer, address, name, reason)
    local who = peer and peer.name ~= "" and peer.name or peer and peer.fingerprint
    if who and name == "EPROTO" then
      log.warn("%s (%s) was put out: %s", who, address, reason)
    elseif who then
      log.debug("%s (%s) left: %s", who, address, reason)
    else
      log.info("no log-in from %s: %s (%s)", address, reason, name)
    end
    if server.on_closed then server.on_closed(1) end
  end
end

-- Counts what is called often, and calls tell with the count and what it was called with, once a second at most.
local function rarely(tell)
  local count, told = 0, 0
  return function(...)
    count = count + 1
    if uv.now() - told < 1000 then return end
    tell(count, ...)
    count, told = 0, uv.now()
  end
end

-- Connections that were refused at a limit.
local function refusals(server)
  local tells = {}
  local function new_tell(reason)
    return rarely(function(count, address)
      log.warn("refused a connection from %s: %s (%d refused so since the last such line)", address, reason, count)
    end)
  end
  return function(address, reason)
    if server.on_closed then server.on_closed(1) end
    tells[reason] = tells[reason] or new_tell(reason)
    tells[reason](address)
  end
end

-- The access lines. What is no request, and was refused, has none.
local function access_lines()
  local tell = rarely(function(count, peer, code)
    log.info("what %s (%s) sent is no request, and was answered %d (%d like it since the last such line)", peer.name, peer.address, code,
      count)
  end)
  return function(request, peer, code, ms, bytes, number)
    if not request then return tell(peer, code) end
    log.access(peer or request.peer, request.verb, request.resource, code, ms, bytes, number)
  end
end

-- What a kind does not say of an option.
local function check_choices(options, level)
  for name, choice in pairs(CHOICES) do
    local given = options[name]
    if given and given ~= choice[1] and given ~= choice[2] then
      error(("korv.server: %s must be '%s' or '%s', not '%s'"):format(name, choice[1], choice[2], given), level)
    end
  end
  check.check("korv.server: ways", options.ways or {}, WAYS, level)
  local wrong = introspection.misuse(options.introspection)
  if wrong then error("korv.server: " .. wrong, level) end
end

--- Makes a server and reads its keys. It listens from `start` or `listen` on.
-- @tparam table options
--
-- - `host` the address to listen on (default: all interfaces, IPv6 and IPv4)
-- - `port` (8022; 0 takes a free one)
-- - `host_keys` a list of files (default `{ "ssh_host_ed25519_key" }`); one that is missing is made, ed25519
-- - `authorized_client_keys` a file in authorized_keys format, or a list of them (`"authorized_keys"`)
-- - `authorize` a function to be asked in place of such files, with a key `{ type, blob, fingerprint }` and a peer `{ address, login }`:
-- it returns nil, or `{ name, roles }` of whom the key lets in. It cannot wait. It is asked when a key is offered and again when the
-- client has signed with it, and about each session when keys are to be read again
-- - `passphrase` of encrypted host keys
-- - `revoke` what becomes of the sessions of a key that is no longer authorized: `"close"` (the default) or `"keep"`
-- - `tracebacks` whether a 500 carries its traceback (true); false: an id, under which the log has it
-- - `json` another codec for bodies: a module with `encode` and `decode`, such as cjson
-- - `cpu_limit` seconds that an endpoint may compute without waiting (1; 0: any); past it the answer is a 500 that says so
-- - `load_limit` seconds that endpoint scripts may take to load (10)
-- - `watch` whether scripts and keys are loaded anew when their files change (true)
-- - `drain` seconds that requests under way get when the server is told to end (30)
-- - `max_packet_size` accepted for the first korv's sake; messages of any size are read
-- - `max_message_bytes`, `max_packed_bytes`, `max_response_bytes` (16 MiB each): a message after and before decompression, an answer
-- - `max_depth` of nested JSON (128)
-- - `timeout` seconds for any request (0: none); past it its endpoint is cancelled and the answer is 504
-- - `max_channel_in_flight` requests of a channel (1024), `max_queued_bytes` of its unread answers (256 KiB): past these it is not read
-- - `max_in_flight` requests in all (65536), `max_in_flight_bytes` of JSON in them (128 MiB): past these the answer is 503
-- - `max_turn_bytes` that one channel has decoded in a turn of the loop before others get theirs (1 MiB)
-- - `max_connections` (10000, lowered to what file descriptors allow), `max_channels` of each (64)
-- - `max_unauthenticated` connections that have not logged in (256), `max_unauthenticated_per_address` of these (64; of IPv6, from one /64)
-- - `ciphers` `"modern"` (AES-GCM and ChaCha20-Poly1305, the default) or `"compatible"` (AES-CTR as well, for old clients)
-- - `max_auth_attempts` (10), `login_timeout` seconds (30)
-- - `ways` in that are open: `{ tcpip = true, subsystem = true, exec = true, shell = true }`, which is the default, each of them
-- - `introspection` how the resources of endpoints that tell of the server begin (`"/korv"`); false: there are none
-- - `keepalive` seconds of silence after which a client is asked for a sign of life; after three times that it is given up (60; 0: never)
-- @function korv.server
-- @treturn ?Server nil where a key cannot be used
-- @treturn ?string message
-- @treturn ?string name, such as `EPERM`
local function new(options)
  options = check.take("korv.server", options, OPTIONS, 2)
  check_choices(options, 3)
  local files = options.authorized_client_keys or "authorized_keys"
  if options.authorize and options.authorized_client_keys then
    error("korv.server: authorize takes the place of authorized_client_keys: give one of them", 2)
  end
  local credential, message, name = credentials {
    host_keys = options.host_keys or { "ssh_host_ed25519_key" }, passphrase = options.passphrase, authorize = options.authorize,
    authorized_client_keys = not options.authorize and (type(files) == "table" and files or { files }) or {},
  }
  if not credential then return nil, message, name end
  core.cpu_limit(options.cpu_limit or 1) -- holds for scripts that load, too
  local own = app.new()
  return setmetatable({
    options = options, credentials = credential, app = own, state = own.state, reloads = {},
    slots = metrics.slots(), reload_counts = { done = 0, failed = 0 },
    generation = { app = own, number = 1 }, generations = {}, -- those that are not over yet, by their numbers
    --- Of each host key: `fingerprint`, `type`, `path`.
    host_keys = credential.host_keys,
    --- The number of its first generation.
    number = 1,
    tracebacks = options.tracebacks ~= false,
  }, Server)
end

--- Registers an endpoint. The server has all methods by which its app takes endpoints and middleware: `get`, `store`, `update`,
-- `delete`, `use`, `add_callback`; see `korv.app`.
-- @function Server:add_callback
-- @tparam string verb `GET`, `STORE`, `UPDATE` or `DELETE`
-- @tparam string resource
-- @tparam function endpoint
for _, method in ipairs { "get", "store", "update", "delete", "use", "add_callback" } do
  Server[method] = function(self, ...)
    if getmetatable(self) ~= Server then error(("call it with a colon: server:%s(…)"):format(method), 2) end
    return self.app[method](self.app, ...)
  end
end

-- Generations -----------------------------------------------------------------------------------------------------------------------

--- Loads endpoint scripts, as `korv serve` does: files that return `function(app) … end`, and folders, which stand for their *.lua.
-- They are loaded anew when they change; the endpoints that were registered on the server itself stay.
-- @tparam string ... paths
-- @treturn ?boolean true
-- @treturn ?string message with file and line
-- @treturn ?string name
function Server:load(...)
  if self.core then error("server:load: it listens already; load scripts before that, and server:reload loads them anew", 2) end
  self.paths = { ... }
  local loaded, message, name = task.wait(function(resume) self:prepare(self.number, resume) end, 3)
  if not loaded then return nil, message, name end
  self.generation = loaded
  return true
end

local function watch_anew(server)
  if server.on_watched then server.on_watched() end
end

-- What was loaded and does not serve is watched as well: what has to be mended may be among it.
local function watch_tried(server, files)
  server.tried = files
  watch_anew(server)
end

--- Loads the scripts anew, aside: nothing that is served changes.
-- @tparam int number of the generation
-- @tparam function done called with the generation, or nil, message, name
function Server:prepare(number, done)
  if not self.paths then return done(nil, "no scripts to load: server:load names them", "ENOENT") end
  generation.load(self.paths, {
    number = number, state = self.state, base = self.app, limit = self.options.load_limit,
    reload = function(told) self:reload(told) end, required = function() watch_anew(self) end,
  }, function(loaded, message, name, files)
    if not loaded then watch_tried(self, files) end
    done(loaded, message, name)
  end)
end

-- What answers the requests of a generation: its app, which tells of the server as well.
local function handler_of(server, loaded)
  introspection.add(loaded.app, server)
  local counting = { mark = core.mark, slot = function(entry) return server.slots:of(entry) end }
  return responder.handler(loaded.app, server.options.json, counting)
end

--- Has a generation that was prepared answer every request from now on. Those under way end in the one that they began in.
-- @tparam table loaded
function Server:commit(loaded)
  local last = self.generation
  self.generation, self.generations[loaded.number] = loaded, loaded
  if last.stop then last:stop() end
  self.core:handle(handler_of(self, loaded), loaded.number)
  loaded:start()
  watch_tried(self, nil)
end

--- Lets go of a generation that was prepared.
-- @tparam table loaded
function Server:discard(loaded)
  loaded:unload()
  watch_tried(self, loaded.files)
end

local function reload_alone(server, done)
  server:prepare(server.generation.number + 1, function(loaded, message)
    if loaded and not server.core then message = "the server has stopped" end
    if message then
      if loaded then server:discard(loaded) end
      server.reload_counts.failed = server.reload_counts.failed + 1
      log.error("not reloaded, generation %d goes on: %s", server.generation.number, message)
      return done(nil, message)
    end
    local count = #loaded.app.routes:all()
    server:commit(loaded)
    server.reload_counts.done = server.reload_counts.done + 1
    log.info("reloaded: generation %d, endpoints: %d", loaded.number, count)
    done(true)
  end)
end

-- Runs all that asked for a reload until now; who asks meanwhile wants what changed meanwhile, too, and gets one more.
local function next_reload(server)
  local asked = server.reloads
  server.reloads, server.reloading = {}, #asked > 0
  if not server.reloading then return end
  reload_alone(server, function(...)
    for _, done in ipairs(asked) do done(...) end
    next_reload(server)
  end)
end

--- Loads the scripts anew and, where all is well, swaps them in. What went wrong is in the log, too.
-- @tparam[opt] function done called with true, or nil and a message
function Server:reload(done)
  done = done or function() end
  if self.coordinate then return self.coordinate(done) end
  self.reloads[#self.reloads + 1] = done
  if not self.reloading then next_reload(self) end
end

local function revoke(server)
  if server.options.revoke == "keep" or not server.core then return end
  server.core:expel(function(peer)
    local why = server.credentials:parting(peer)
    if not why then return nil end
    log.info("the key %s of %s %s: its session ends", peer.fingerprint, peer.name, why)
    return "the key " .. why
  end)
end

--- Reads authorized keys and host keys again. A key that is gone, or whose line says something else now, loses its
-- sessions, unless the option `revoke` is `"keep"`.
function Server:reload_keys()
  local ok, message = self.credentials:read_authorized()
  if ok then
    revoke(self)
  else
    log.error("the authorized keys stay as they were: %s", message)
  end
  local have_changed
  have_changed, message = self.credentials:read_host_keys(function(list)
    if not self.core then return true end -- it begins with them, or has ended
    return self.core:set_keys { keys = list }
  end)
  if message then log.error("the host keys stay as they were: %s", message) end
  if have_changed then log.info("the host keys have changed") end
  self.host_keys = self.credentials.host_keys
end

--- What a change of is to be noticed.
-- @treturn table a list of `{ folder, names, what }`: `names` is a set of files, nil for any *.lua; `what` is `"scripts"` or `"keys"`
function Server:watched()
  local list = {}
  for _, path in ipairs(self.credentials.options.authorized_client_keys) do watch.add_file(list, path, "keys") end
  for _, path in ipairs(self.credentials.options.host_keys) do watch.add_file(list, path, "keys") end
  for _, folder in ipairs(self.generation.folders or {}) do list[#list + 1] = { folder = folder, what = "scripts" } end
  for _, files in ipairs { self.generation.files or {}, self.tried } do
    for _, file in ipairs(files) do watch.add_file(list, file, "scripts") end
  end
  return list
end

local function begin_watch(server)
  local watcher = watch.new(function(what)
    if what == "keys" then server:reload_keys() else server:reload() end
  end)
  watcher:set(server:watched())
  server.on_watched = function() watcher:set(server:watched()) end
  return watcher
end

-- Life ------------------------------------------------------------------------------------------------------------------------------

-- A generation's last request has ended.
local function retired(server)
  return function(number)
    local over = server.generations[number]
    server.generations[number] = nil
    if over then over:unload() end
  end
end

local function ended(server)
  return function()
    server.core = nil
    if server.on_ended then server.on_ended() end
  end
end

local function core_options(server, sockets)
  local options = {
    sockets = sockets, keys = server.credentials.list, request = responder.Request, generation = server.generation.number,
    authorize = function(type, blob, fingerprint, ...)
      return server.credentials:admit({ type = type, blob = blob, fingerprint = fingerprint }, ...)
    end,
    closed = closed(server), refused = refusals(server), failed = responder.failures(server), retired = retired(server),
    ended = ended(server),
    answered = log.enabled "info" and access_lines() or nil,
    converse = typed(server), handler = handler_of(server, server.generation),
    slot = function(request) return server.slots:of_request(server.generation.app, request) end,
  }
  for name in pairs(OPTIONS) do
    if options[name] == nil then options[name] = server.options[name] end
  end
  return options
end

local function bind(options)
  local port = options.port or 8022
  if math.type(port) ~= "integer" or port < 0 or port > 65535 then
    error(("korv.server: port must be an integer from 0 to 65535 (got %s)"):format(port), 3)
  end
  return core.bind(options.host, port)
end

-- As core.server, which takes over no sockets where it raises: those that were bound for it are closed then.
local function core_server(options, bound)
  local results = table.pack(pcall(core.server, options))
  if results[1] then return table.unpack(results, 2, results.n) end
  for _, fd in ipairs(bound) do uv.fs_close(fd) end
  error(results[2], 0)
end

--- Begins to listen; the caller runs the loop. The app takes no more endpoints.
-- @tparam[opt] {int,...} sockets file descriptors that listen already, which it takes over; none in the list: it has only what it adopts
-- @treturn ?Server itself
-- @treturn ?string message
-- @treturn ?string name, such as `EADDRINUSE`
function Server:listen(sockets)
  if self.core then error("server:listen: it listens already", 2) end
  local bound, message, name = {}, nil, nil
  if not sockets then bound, message, name = bind(self.options) end
  if not bound then return nil, message, name end
  sockets = sockets or bound
  self.app.frozen = true
  local listening
  listening, message, name = check.call("korv.server", 2, core_server, core_options(self, sockets), bound)
  if not listening then return nil, message, name end
  self.started_ns = uv.hrtime()
  self.core, self.sockets, self.port = listening, sockets, sockets[1] and core.socket_port(sockets[1])
  if self.generation.start then
    self.generations[self.generation.number] = self.generation
    self.generation:start()
  end
  return self
end

--- Takes a connected socket, as if it had been accepted. It has a file descriptor of its own from then on.
-- @tparam int fd
-- @treturn ?boolean true
-- @treturn ?string message
-- @treturn ?string name, such as `EMFILE`
function Server:adopt(fd)
  if not self.core then return nil, "the server has stopped", "ECLOSED" end
  local own, message, name = core.dup_cloexec(fd)
  if not own then return nil, message, name end
  self.core:adopt(own)
  return true
end

--- Serves, once it listens, until it is told to end: by `stop`, or by SIGINT or SIGTERM, which let requests under way end first.
-- @tparam[opt] table options see `korv.service`
function Server:run(options)
  if uv.loop_mode() then error("server:run: the loop runs already; server:listen is enough", 2) end
  local watcher = self.options.watch ~= false and begin_watch(self)
  service.run(self, options or { drain = self.options.drain })
  if watcher then watcher:close() end
  uv.run "nowait" -- luv does not survive the end of a program with handles that are half closed
end

--- Listens and serves until it is told to end. As in the first korv, the last line of a program.
-- @treturn ?boolean true
-- @treturn ?string message, where it cannot listen
-- @treturn ?string name
function Server:start()
  if uv.loop_mode() then error("server:start: the loop runs already; use server:listen", 2) end
  local listening, message, name = self:listen()
  if not listening then return nil, message, name end
  self:run()
  return true
end

local function at_end(server, done)
  local before = server.on_ended
  server.on_ended = function()
    if before then before() end
    done()
  end
end

--- Leaves its sockets to another process that has them, too; it serves those who have connected as before. A drain after that
-- leaves to the other process, too, what it has not read yet: it answers no 503, and a client with `reconnect` asks again.
function Server:leave_sockets()
  if self.core then self.core:leave_sockets() end
end

--- Ends gently: no new connections; requests under way end, new ones are answered 503, and what is idle is closed.
-- @tparam[opt=30] number seconds after which requests that still run are cancelled, and answered 503
-- @tparam[opt] function done called once everything has gone
function Server:drain(seconds, done)
  done = done or function() end
  if not self.core then return done() end
  local listening = self.core
  local last_words = core.timer(function() listening:close() end)
  local patience = core.timer(function()
    listening:cancel(503)
    last_words:start(LAST_WORDS)
  end)
  at_end(self, function()
    patience:stop()
    last_words:stop()
    done()
  end)
  patience:start(seconds or self.options.drain or 30)
  self.draining = true
  listening:drain()
end

--- Stops listening and ends every connection.
function Server:stop()
  if self.core then self.core:close() end
end

--- How it is doing.
-- @treturn table `connections`, `in_flight`, `requests` (ever), `generation`; while it listens, all that GET /korv/metrics tells
function Server:counters()
  if self.core then return metrics.snapshot(self) end
  return { connections = 0, in_flight = 0, requests = 0, generation = self.generation.number }
end

return new
