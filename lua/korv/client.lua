--- The client: one connection, any number of calls on it at once.
-- @module korv.client

local core = require "korv.core"
local log = require "korv.log"
local ssh = require "korv.ssh"
local task = require "korv.task"
local uv = require "luv"

local Client = {}
Client.__index = Client

local OPTIONS = {
  host = "string", port = "number", user = "string", client_keys = "table", passphrase = "string",
  known_hosts = "string or false", accept_new = "boolean", ssh = "boolean", timeout = "number", max_packet_size = "number",
  max_message_bytes = "number", max_packed_bytes = "number", max_request_bytes = "number", max_depth = "number",
}

local TIMEOUT = 30
local DEFAULT_KEYS = { "id_ed25519", "id_ecdsa", "id_rsa" }

local function check_options(options)
  if type(options) ~= "table" then error("korv.client: options must be a table, as in korv.client { host = \"localhost\" }", 3) end
  for name, value in pairs(options) do
    local wanted = OPTIONS[name]
    if not wanted then error(("korv.client: unknown option '%s'"):format(tostring(name)), 3) end
    if not wanted:find(type(value), 1, true) and not (value == false and wanted:find "false") then
      error(("korv.client: %s must be a %s, not a %s"):format(name, wanted, type(value)), 3)
    end
  end
end

-- Keys ------------------------------------------------------------------------------------------------------------------------------

local function home(name) return (os.getenv "HOME" or ".") .. "/.ssh/" .. name end

local function load_keys(paths, passphrase)
  local list = {}
  for i, path in ipairs(paths) do
    local key, message, name = core.load_key(path, passphrase)
    if not key then return nil, "client key " .. message, name end
    list[i] = key
  end
  return list
end

-- The keys that ssh would try; one that is not there, or cannot be used, is passed over as ssh does.
local function load_default_keys(passphrase)
  local list, reason = {}, nil
  for _, name in ipairs(DEFAULT_KEYS) do
    local key, message, code = core.load_key(home(name), passphrase)
    list[#list + 1] = key
    if not key and code ~= "ENOENT" then reason = reason or message end
  end
  if #list > 0 then return list end
  return nil, reason or ("there is no key in %s: name one (-i FILE, client_keys), or make one with `ssh-keygen -t ed25519`"):format(home ""), "ENOKEY"
end

-- Waiting ---------------------------------------------------------------------------------------------------------------------------

-- Like korv.await, but where no loop runs it runs the loop until there is an answer.
local function wait(begin)
  local here, why = core.here()
  if here then return task.await(begin) end
  if uv.loop_mode() then error("cannot wait here: " .. why, 3) end
  local results
  begin(function(...) results = results or table.pack(...) end)
  while not results do uv.run "once" end
  return table.unpack(results, 1, results.n)
end

-- Calls -----------------------------------------------------------------------------------------------------------------------------

local busy = {} -- the clients with calls under way

local function settle(self)
  busy[self] = nil
  self.transport:keep_loop(false)
  self.timer:stop()
  self.due = math.huge
end

-- Takes a call off the list and hands over how it ended.
local function finish(self, call, ...)
  self.calls[call.id] = nil
  self.pending = self.pending - 1
  if self.pending == 0 then settle(self) end
  call.done(...)
end

local function end_late_calls(self)
  uv.update_time()
  local now, due = uv.now(), math.huge
  for _, call in pairs(self.calls) do
    if call.due > now then
      due = math.min(due, call.due)
    else
      finish(self, call, nil, ("%s %s: no answer within %g s"):format(call.verb, call.resource, call.timeout), "ETIMEDOUT")
    end
  end
  self.due = math.huge
  self:watch(due)
end

-- Has the timer go off when the earliest call is due.
function Client:watch(due)
  if due >= self.due then return end
  self.due = due
  self.timer:start((due - uv.now()) / 1000)
end

local function on_message(self, message)
  local id = type(message) == "table" and message.request_id
  local call = self.calls[math.type(id) == "float" and math.tointeger(id) or id]
  if call then
    finish(self, call, message)
  else
    log.debug("ignored a response that no call waits for, request_id %s", tostring(id))
  end
end

local function on_open(self, channel, way, fingerprint)
  self.channel, self.way, self.fingerprint = channel, way, fingerprint
  self.transport:keep_loop(false)
  self.opened(self)
end

local function on_closed(self, name, message)
  self.closed = { message = message, name = name }
  if self.opened then self.opened(nil, message, name) end
  local calls = self.calls
  self.calls, self.pending, busy[self] = {}, 0, nil
  for _, call in pairs(calls) do
    call.done(nil, ("%s %s: %s"):format(call.verb, call.resource, message), name)
  end
  self.timer:stop()
end

local function submit(self, verb, resource, body, timeout, done)
  if self.closed then
    done(nil, ("%s %s: %s"):format(verb, resource, self.closed.message), self.closed.name)
    return
  end
  local id = self.last_id + 1
  self.last_id = id
  if body == nil and (verb == "STORE" or verb == "UPDATE") then body = core.json.null end
  local ok, message, name = self.channel:send { id = id, verb = verb, resource = resource, body = body }
  if not ok then
    done(nil, ("%s %s: %s"):format(verb, resource, message), name)
    return
  end
  uv.update_time()
  local call = { id = id, verb = verb, resource = resource, timeout = timeout, due = uv.now() + math.ceil(timeout * 1000), done = done }
  self.calls[id] = call
  self.pending = self.pending + 1
  if self.pending == 1 then
    busy[self] = true
    self.transport:keep_loop(true)
  end
  self:watch(call.due)
end

--- Calls an endpoint.
-- @tparam string verb `GET`, `STORE`, `UPDATE`, `DELETE` or any other that the server knows
-- @tparam string resource `/hello`, `/search?q=lua`
-- @param[opt] body any value that JSON can hold
-- @tparam[opt] table options `timeout` in seconds; `callback`, as for `Client:get`
-- @treturn ?table the response: `code`, `body`, `id`, `request_id`; nil where none came
-- @treturn ?string message
-- @treturn ?string name: `ETIMEDOUT`, `ECONNRESET`, `EJSON` (the body has no JSON form), …
function Client:call(verb, resource, body, options)
  if type(verb) ~= "string" then error("client:call: the verb must be a string, such as \"GET\"", 2) end
  if type(resource) ~= "string" then error("client:call: the resource must be a string, such as \"/hello\"", 2) end
  local timeout, callback = options and options.timeout or self.timeout, options and options.callback
  if callback then
    submit(self, verb, resource, body, timeout, function(...) task.spawn(callback, ...) end)
    return
  end
  return wait(function(resume) submit(self, verb, resource, body, timeout, resume) end)
end

local function method(verb)
  return function(self, resource, body, callback)
    if callback ~= nil and type(callback) ~= "function" then
      error(("client:%s: the callback must be a function (got a %s)"):format(verb:lower(), type(callback)), 2)
    end
    return self:call(verb, resource, body, callback and { callback = callback })
  end
end

--- Calls an endpoint with GET. With a callback it returns at once, and the callback gets what the call would have returned; without, it
-- waits: in an endpoint or in `korv.spawn` others are served meanwhile, where no loop runs it runs the loop, and in a luv callback it raises.
-- @function Client:get
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] function callback called with the response, or nil, message, name; it may wait
-- @treturn ?table the response; see `Client:call`
Client.get = method "GET"

--- Calls an endpoint with STORE; see `Client:get`.
-- @function Client:store
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] function callback
-- @treturn ?table
Client.store = method "STORE"

--- Calls an endpoint with UPDATE; see `Client:get`.
-- @function Client:update
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] function callback
-- @treturn ?table
Client.update = method "UPDATE"

--- Calls an endpoint with DELETE; see `Client:get`.
-- @function Client:delete
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] function callback
-- @treturn ?table
Client.delete = method "DELETE"

--- Ends the connection. Calls under way return nil, message, `ECLOSED`.
function Client:close()
  if self.transport and not self.closed then self.transport:close() end
end

Client.__close = Client.close
Client.__gc = Client.close

-- Connecting ------------------------------------------------------------------------------------------------------------------------

-- What the transport calls does not keep a client alive that everybody else has forgotten; calls under way do.
local function transport_options(self, options)
  local weak = setmetatable({ client = self }, { __mode = "v" })
  local function on(handler)
    return function(...)
      if weak.client then handler(weak.client, ...) end
    end
  end
  return {
    host = options.host, port = options.port, user = options.user or os.getenv "USER", timeout = self.timeout,
    accept_new = options.accept_new, known_hosts = options.known_hosts ~= false and (options.known_hosts or home "known_hosts") or nil,
    max_message_bytes = options.max_message_bytes, max_packed_bytes = options.max_packed_bytes,
    max_request_bytes = options.max_request_bytes, max_depth = options.max_depth,
    message = on(on_message), closed = on(on_closed), open = on(on_open),
  }
end

local function connect(self, options)
  local transport = transport_options(self, options)
  if options.ssh then return ssh(transport, options) end
  local message, name
  if options.client_keys then
    transport.keys, message, name = load_keys(options.client_keys, options.passphrase)
  else
    transport.keys, message, name = load_default_keys(options.passphrase)
  end
  if not transport.keys then return nil, message, name end
  return core.dial(transport)
end

--- Connects, checks the host's key, logs in. Waits as `Client:get` does.
-- @tparam table options
--
-- - `host` (`"localhost"`), `port` (8022), `user` (the user's name; it decides nothing)
-- - `client_keys` a list of private key files (default: those in ~/.ssh that ssh would try), `passphrase` of encrypted ones
-- - `known_hosts` a file (`~/.ssh/known_hosts`), or false: the host's key is not checked
-- - `accept_new` an unknown host's key is added to that file (false)
-- - `ssh` runs the user's own ssh as transport, with its configuration, agent and jump hosts (false)
-- - `timeout` seconds for connecting and for each call (30)
-- - `max_packet_size` accepted for the first korv's sake
-- - `max_message_bytes`, `max_packed_bytes`, `max_request_bytes` (16 MiB), `max_depth` (128): limits of one message
-- @function korv.client
-- @treturn ?Client
-- @treturn ?string message
-- @treturn ?string name: `EHOSTKEY` (unknown host), `EHOSTKEYCHANGED`, `EAUTH` (no key is let in), `ECONNREFUSED`, `ETIMEDOUT`, …
local function new(options)
  check_options(options)
  local self = setmetatable({ calls = {}, pending = 0, last_id = 0, due = math.huge, timeout = options.timeout or TIMEOUT }, Client)
  local weak = setmetatable({ client = self }, { __mode = "v" })
  self.timer = core.timer(function() end_late_calls(weak.client) end)
  return wait(function(resume)
    self.opened = function(...)
      self.opened = nil
      resume(...)
    end
    local transport, message, name = connect(self, options)
    if not transport then resume(nil, message, name) end
    self.transport = transport
  end)
end

return new
