--- The server: host keys, who is let in, and the app that answers.
-- @module korv.server

local core = require "korv.core"
local app = require "korv.app"
local check = require "korv.options"
local keys = require "korv.keys"
local loader = require "korv.loader"
local log = require "korv.log"
local uv = require "luv"

local Server = {}
Server.__index = Server

-- Every option with its kind. What is not given takes its default from core or from here.
local OPTIONS = {
  host = "string", port = "number", host_keys = "files", authorized_client_keys = "string", passphrase = "string",
  tracebacks = "boolean", json = "codec", max_packet_size = "number",
  max_message_bytes = "number", max_packed_bytes = "number", max_response_bytes = "number", max_depth = "number",
  timeout = "number", max_in_flight = "number", max_channel_in_flight = "number", max_turn_bytes = "number", max_queued_bytes = "number",
  max_connections = "number", max_unauthenticated = "number", max_channels = "number", max_auth_attempts = "number",
  login_timeout = "seconds", keepalive = "number", cpu_limit = "number",
}

local function load_host_key(path, passphrase)
  local key, message, name = core.load_key(path, passphrase)
  if key then return key end
  if name ~= "ENOENT" then return nil, "host key " .. message, name end
  key, message, name = core.make_key(path)
  if not key then return nil, message:gsub("the key", "the host key", 1), name end
  log.info("made a new host key: %s", path)
  return key
end

local function load_host_keys(paths, passphrase)
  local list, described, by_type = {}, {}, {}
  for i, path in ipairs(paths) do
    local key, message, name = load_host_key(path, passphrase)
    if not key then return nil, message, name end
    local fingerprint, type = key:describe()
    if by_type[type] then
      return nil, ("the host keys %s and %s are both of type %s: keep one of a type"):format(by_type[type], path, type), "EINVAL"
    end
    by_type[type] = path
    list[i], described[i] = key, { fingerprint = fingerprint, type = type, path = path }
  end
  return list, described
end

-- A request's table has `params` and `query` without anybody having made them, and `request:send`.
local Request = {}
function Request.__index(request, field)
  if field == "send" then return core.send end
  if field ~= "params" and field ~= "query" then return nil end
  local empty = {}
  rawset(request, field, empty)
  return empty
end

-- The peer that a request sees. name: the key's comment in authorized_keys; login: what the client typed, which proves nothing.
local function authorizer(set)
  return function(_, _, fingerprint, login, address)
    local entry = set[fingerprint]
    if not entry then
      log.info("refused the key %s from %s", fingerprint, address)
      return nil
    end
    return { fingerprint = fingerprint, name = entry.name, roles = {}, address = address, login = login }
  end
end

local function closed(peer, address, name, reason)
  local who = peer and peer.name ~= "" and peer.name or peer and peer.fingerprint
  if who then
    log.debug("%s (%s) left: %s", who, address, reason)
  else
    log.info("no log-in from %s: %s (%s)", address, reason, name)
  end
end

-- Connections that were refused at a limit: one line a second at most, whoever comes as often.
local function refusals()
  local count, told = 0, 0
  return function(address, reason)
    count = count + 1
    if uv.now() - told < 1000 then return end
    log.warn("refused a connection from %s: %s (%d refused since the last such line)", address, reason, count)
    count, told = 0, uv.now()
  end
end

-- What the core asks when an endpoint did not bring an answer.
local function failures(server)
  local handlers = {}
  function handlers.error(err, traceback)
    local code, body = app.failure(err, traceback, { tracebacks = server.tracebacks })
    if server.tracebacks and not app.aborted(err) then log.error("an endpoint failed: %s\n%s", body.message, body.traceback) end
    return code, body
  end
  function handlers.result(request, code, body)
    local message = app.invalid_result(server.app:entry(request), request, code, body)
    log.error("%s", message)
    return 500, { message = message }
  end
  function handlers.body(message)
    log.error("an endpoint's body cannot be sent: %s", message)
    return 500, { message = message }
  end
  return function(kind, ...) return handlers[kind](...) end
end

-- An app may choose another codec: the body is then a string of JSON on the way through the core.
local function with_codec(json, handler)
  if not json then return handler end
  return function(request)
    if request.body ~= nil then request.body = json.decode(core.json.encode(request.body)) end
    local code, body = handler(request)
    if body ~= nil then body = core.json.decode(json.encode(body)) end
    return code, body
  end
end

--- Makes a server and reads its keys. It listens from `start` or `listen` on.
-- @tparam table options
--
-- - `host` the address to listen on (default: all interfaces, IPv6 and IPv4)
-- - `port` (8022; 0 takes a free one)
-- - `host_keys` a list of files (default `{ "ssh_host_ed25519_key" }`); one that is missing is made, ed25519
-- - `authorized_client_keys` a file in authorized_keys format (`"authorized_keys"`)
-- - `passphrase` of encrypted host keys
-- - `tracebacks` whether a 500 carries its traceback (true); false: an id, under which the log has it
-- - `json` another codec for bodies: a module with `encode` and `decode`, such as cjson
-- - `cpu_limit` seconds that an endpoint may compute without waiting (1; 0: any); past it the answer is a 500 that says so
-- - `max_packet_size` accepted for the first korv's sake; messages of any size are read
-- - `max_message_bytes`, `max_packed_bytes`, `max_response_bytes` (16 MiB each): a message after and before decompression, an answer
-- - `max_depth` of nested JSON (128)
-- - `timeout` seconds for any request (0: none); past it its endpoint is cancelled and the answer is 504
-- - `max_channel_in_flight` requests of a channel (1024), `max_queued_bytes` of its unread answers (256 KiB): past these it is not read
-- - `max_in_flight` requests in all (65536): past it the answer is 503
-- - `max_turn_bytes` that one channel has decoded in a turn of the loop before others get theirs (1 MiB)
-- - `max_connections` (10000, lowered to what file descriptors allow), `max_unauthenticated` of these (256), `max_channels` of each (64)
-- - `max_auth_attempts` (10), `login_timeout` seconds (30)
-- - `keepalive` seconds of silence after which a client is asked for a sign of life; after three times that it is given up (60; 0: never)
-- @function korv.server
-- @treturn ?Server nil where a key cannot be used
-- @treturn ?string message
-- @treturn ?string name, such as `EPERM`
local function new(options)
  check.check("korv.server", options, OPTIONS, 2)
  local list, described, name = load_host_keys(options.host_keys or { "ssh_host_ed25519_key" }, options.passphrase)
  if not list then return nil, described, name end
  local set, message
  set, message, name = keys.load(options.authorized_client_keys or "authorized_keys", core.public_key)
  if not set then return nil, message, name end
  for _, problem in ipairs(set.problems) do log.warn("%s", problem) end
  return setmetatable({
    options = options, keys = list, authorized = set, app = app.new(),
    --- Of each host key: `fingerprint`, `type`, `path`.
    host_keys = described,
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
  Server[method] = function(self, ...) return self.app[method](self.app, ...) end
end

--- Loads endpoint scripts, as `korv serve` does: files that return `function(app) … end`, and folders, which stand for their *.lua.
-- @tparam string ... paths
-- @treturn ?boolean true
-- @treturn ?string message with file and line
-- @treturn ?string name
function Server:load(...)
  local scripts, message, name = loader.find { ... }
  if not scripts then return nil, message, name end
  for _, path in ipairs(scripts) do
    local ok
    ok, message, name = loader.load(path, self.app)
    if not ok then return nil, message, name end
  end
  return true
end

--- Begins to listen; the caller runs the loop. The app takes no more endpoints.
-- @treturn ?Server itself
-- @treturn ?string message
-- @treturn ?string name, such as `EADDRINUSE`
function Server:listen()
  if self.core then error("server:listen: it listens already", 2) end
  local options = { keys = self.keys, request = Request, authorize = authorizer(self.authorized), closed = closed,
                    refused = refusals(),
                    failed = failures(self), handler = with_codec(self.options.json, self.app:handler(core.deadline)) }
  for name in pairs(OPTIONS) do
    if options[name] == nil then options[name] = self.options[name] end
  end
  local listening, message, name = check.call("korv.server", 2, core.server, options)
  if not listening then return nil, message, name end
  core.cpu_limit(self.options.cpu_limit or 1)
  self.core, self.port = listening, listening:port()
  return self
end

--- Serves, once it listens, until `stop`, SIGINT or SIGTERM.
function Server:run()
  if uv.loop_mode() then error("server:run: the loop runs already; server:listen is enough", 2) end
  local signals = {}
  for i, name in ipairs { "sigint", "sigterm" } do
    signals[i] = uv.new_signal()
    signals[i]:start(name, function()
      self:stop()
      uv.stop() -- whatever else the program has on the loop
    end)
    signals[i]:unref()
  end
  uv.run()
  for _, signal in ipairs(signals) do signal:close() end
  uv.run "nowait" -- luv does not survive the end of a program with handles that are half closed
end

--- Listens and serves until `stop`, SIGINT or SIGTERM. As in the first korv, the last line of a program.
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

--- Stops listening and ends every connection.
function Server:stop()
  if not self.core then return end
  self.core:close()
  self.core = nil
end

return new
