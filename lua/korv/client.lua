--- The client: one connection, any number of calls and streams on it at once.
-- @module korv.client

local check = require "korv.options"
local core = require "korv.core"
local identity = require "korv.identity"
local log = require "korv.log"
local ssh = require "korv.ssh"
local stream = require "korv.stream"
local task = require "korv.task"
local uv = require "luv"

local Client = {}
Client.__index = Client

local OPTIONS = {
  host = "string", port = "number", user = "string", client_keys = "files", passphrase = "string",
  known_hosts = "string or false", accept_new = "boolean", ssh = "boolean", timeout = "seconds", max_packet_size = "number",
  reconnect = "boolean", keepalive = "number",
  max_message_bytes = "number", max_packed_bytes = "number", max_request_bytes = "number", max_depth = "number",
}

local TIMEOUT = 30
local FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10 -- seconds between attempts to reconnect, before jitter

-- What another attempt would not mend.
local FINAL = { EHOSTKEY = true, EHOSTKEYCHANGED = true, EAUTH = true, ENOKEY = true, EPROTO = true }

-- Calls: waiting to be sent (self.queue), sent (self.calls, by id), done ------------------------------------------------------------

local busy = {} -- luacheck: ignore 241 (the clients with calls under way are not collected)

-- The connection and its timer keep the loop running while somebody waits for something on it.
local function count(self, change)
  self.pending = self.pending + change
  busy[self] = self.pending > 0 or nil
  if self.transport then self.transport:keep_loop(self.pending > 0) end
  if self.pending == 0 then
    self.timer:stop()
    self.due = math.huge
  end
end

local function finish(self, call, ...)
  if call.finished then return end
  call.finished = true
  self.calls[call.id] = nil
  self.live[call] = nil
  count(self, -1)
  call.done(...)
end

local function describe(call, what) return ("%s %s: %s"):format(call.message.verb, call.message.resource, what) end

-- Tells the server that nobody waits any more. A Python korv server would break off at that.
local function withdraw(self, call)
  if self.calls[call.id] and self.channel and self.way ~= "tcpip" then self.channel:send { cancel = call.id } end
end

-- Has the timer go off when the earliest call is due.
local function watch(self, due)
  if due >= self.due then return end
  self.due = due
  self.timer:start((due - uv.now()) / 1000)
end

local function end_late_calls(self)
  uv.update_time()
  local now, next_due, late = uv.now(), math.huge, {}
  for call in pairs(self.live) do
    if call.due > now then
      next_due = math.min(next_due, call.due)
    else
      late[#late + 1] = call
    end
  end
  for _, call in ipairs(late) do
    withdraw(self, call)
    finish(self, call, nil, describe(call, ("no answer within %g s"):format(call.timeout)), "ETIMEDOUT")
  end
  self.due = math.huge
  watch(self, next_due)
end

-- Hands a call to the channel.
local function send(self, call)
  if call.finished then return end
  if self.way ~= "tcpip" then call.message.timeout = math.max(0.001, (call.due - uv.now()) / 1000 - call.grace) end
  local ok, message, name = self.channel:send(call.message)
  if ok then
    self.calls[call.id] = call
  else
    finish(self, call, nil, describe(call, (message:gsub("^request%.", ""))), name)
  end
end

local function send_queued(self)
  local queue = self.queue
  self.queue = {}
  for _, call in ipairs(queue) do send(self, call) end
end

local begin_connecting

-- Keeps a call until there is a connection: with the body that it has now, whatever the caller does to the table meanwhile. One without a
-- JSON form is refused when it is to be sent.
local function enqueue(self, call)
  local body = call.message.body
  local text = type(body) == "table" and core.json.encode(body)
  if text then call.message.body = core.json.decode(text) end
  self.queue[#self.queue + 1] = call
end

local function submit(self, call)
  uv.update_time()
  call.due = uv.now() + math.ceil((call.timeout + call.grace) * 1000)
  self.live[call] = true
  count(self, 1)
  watch(self, call.due)
  if self.channel and not self.ended then
    send(self, call)
  elseif self.options.reconnect and not self.ended then
    enqueue(self, call)
    begin_connecting(self)
  else
    finish(self, call, nil, describe(call, self.lost.message), self.lost.name)
  end
end

-- The connection ------------------------------------------------------------------------------------------------------------------------

local function on_message(self, message)
  local id = type(message) == "table" and message.request_id
  local call = self.calls[math.type(id) == "float" and math.tointeger(id) or id]
  if call then
    self.pause = nil
    if math.type(message.code) == "integer" then return finish(self, call, message) end
    finish(self, call, nil, describe(call, "what the server answered has no code"), "EPROTO")
  elseif id == 0 and message.code then
    log.warn("the server refused a message of ours: %s %s", message.code, core.json.encode(message.body))
  else
    log.debug("ignored a response that no call waits for, request_id %s", tostring(id))
  end
end

local function on_open(self, channel, way, fingerprint)
  self.channel, self.way, self.fingerprint = channel, way, fingerprint
  count(self, 0)
  if self.opened then self.opened(self) end
  send_queued(self)
end

-- May a call that was sent be sent again? A GET changes nothing, and a server that ended in order has run all that it had read.
local function may_repeat(call, name) return name == "EOF" or call.message.verb == "GET" end

local function sort_out(self, name, message)
  local again = self.queue
  local sent = {}
  for _, call in pairs(self.calls) do sent[#sent + 1] = call end
  table.sort(sent, function(a, b) return a.id < b.id end)
  self.calls, self.queue = {}, {}
  for i = #sent, 1, -1 do
    if self.options.reconnect and not self.ended and may_repeat(sent[i], name) then table.insert(again, 1, table.remove(sent, i)) end
  end
  if not self.ended then message = message .. "; it may have been run, or not" end
  for _, call in ipairs(sent) do finish(self, call, nil, describe(call, message), name) end
  return again
end

local function on_closed(self, name, message)
  self.lost = { message = message, name = name }
  if self.transport then self.former[self.transport] = true end
  self.transport, self.channel = nil, nil
  if self.opened then return self.opened(nil, message, name) end
  local again = sort_out(self, name, message)
  if FINAL[name] or self.ended or not self.options.reconnect then
    for _, call in ipairs(again) do finish(self, call, nil, describe(call, message), name) end
    return
  end
  self.queue = again
  if #again > 0 then begin_connecting(self) end
end

-- What the transport calls does not keep a client alive that everybody else has forgotten; calls under way do.
local function transport_options(self)
  local options = self.options
  local weak = setmetatable({ client = self }, { __mode = "v" })
  local function on(handler)
    return function(...)
      if weak.client then handler(weak.client, ...) end
    end
  end
  return {
    host = options.host, port = options.port, user = options.user or identity.user(),
    timeout = self.timeout, keepalive = options.keepalive, accept_new = options.accept_new,
    known_hosts = options.known_hosts ~= false and (options.known_hosts or identity.home "known_hosts") or nil,
    max_message_bytes = options.max_message_bytes, max_packed_bytes = options.max_packed_bytes,
    max_request_bytes = options.max_request_bytes, max_depth = options.max_depth,
    message = on(on_message), closed = on(on_closed), open = on(on_open),
  }
end

local function dial(self)
  local transport = transport_options(self)
  if self.options.ssh then return ssh(transport, self.options) end
  local message, name
  transport.keys, message, name = identity.load(self.options.client_keys, self.options.passphrase)
  if not transport.keys then return nil, message, name end
  return check.call("korv.client", 4, core.dial, transport)
end

local function connect(self)
  local transport, message, name = dial(self)
  self.transport = transport
  if not transport then on_closed(self, name, message) end
end

-- At once where the last connection brought an answer, else after a pause, which grows and has jitter so that many clients of one server
-- do not come together. Nothing is done for a client without calls.
function begin_connecting(self)
  if self.transport or self.waiting then return end
  local pause = self.pause
  self.pause = math.min((pause or FIRST_PAUSE / 2) * 2, LONGEST_PAUSE)
  if not pause then return connect(self) end
  self.waiting = core.timer(function()
    self.waiting = nil
    if #self.queue > 0 and not self.ended then connect(self) end
  end)
  self.waiting:start(pause * (0.5 + math.random()))
end

-- What a person calls -------------------------------------------------------------------------------------------------------------------

local Call = {}
Call.__index = Call

--- Gives a call up: its callback gets nil, message, `ECANCELED`, and the server is told.
function Call:cancel()
  withdraw(self.client, self)
  finish(self.client, self, nil, describe(self, "cancelled"), "ECANCELED")
end

local GRACE = 1 -- second

-- In an endpoint that has a deadline, no call outlasts it. What ends such a call is the end of the endpoint, which is not to be raced by
-- the call's own timer: that one comes later.
local function effective_timeout(self, options)
  local own, left = options and options.timeout or self.timeout, core.remaining()
  if left and left <= own then return left, GRACE end
  return own, 0
end

local function new_call(self, verb, resource, body, options, done)
  self.last_id = self.last_id + 1
  if body == nil and (verb == "STORE" or verb == "UPDATE") then body = core.json.null end
  local timeout, grace = effective_timeout(self, options)
  return setmetatable({
    client = self, id = self.last_id, timeout = timeout, grace = grace, done = done,
    message = { id = self.last_id, verb = verb, resource = resource, body = body },
  }, Call)
end

local CALL_OPTIONS = { timeout = "seconds", callback = "function" }

local function check_call(self, method, verb, resource, options)
  if getmetatable(self) ~= Client then error(("call it with a colon: client:%s(…)"):format(method), 3) end
  if type(verb) ~= "string" then error(("client:%s: the verb must be a string, such as \"GET\""):format(method), 3) end
  if type(resource) ~= "string" then error(("client:%s: the resource must be a string, such as \"/hello\""):format(method), 3) end
  if options ~= nil then check.check("client:" .. method, options, CALL_OPTIONS, 3) end
end

--- Calls an endpoint.
-- @tparam string verb `GET`, `STORE`, `UPDATE`, `DELETE` or any other that the server knows
-- @tparam string resource `/hello`, `/search?q=lua`
-- @param[opt] body any value that JSON can hold
-- @tparam[opt] table options `timeout` in seconds; `callback`, as for `Client:get`
-- @treturn ?table the response: `code`, `body`, `id`, `request_id`; nil where none came. With a callback: the call, which has a
-- method `cancel`
-- @treturn ?string message
-- @treturn ?string name: `ETIMEDOUT`, `ECONNRESET`, `EJSON` (the body has no JSON form), …
function Client:call(verb, resource, body, options)
  check_call(self, "call", verb, resource, options)
  local callback = options and options.callback
  if callback then
    local call = new_call(self, verb, resource, body, options, function(...) task.spawn(callback, ...) end)
    submit(self, call)
    return call
  end
  return task.wait(function(resume)
    local call = new_call(self, verb, resource, body, options, resume)
    submit(self, call)
    return function() call:cancel() end
  end)
end

-- What an HTTP client would be asked for.
local FOREIGN = { post = "store", put = "update", patch = "update", head = "get" }
setmetatable(Client, { __index = function(_, name)
  if FOREIGN[name] then error(("client:%s: the verbs are get, store, update and delete; try client:%s"):format(name, FOREIGN[name]), 2) end
end })

local function method(verb)
  return function(self, resource, body, callback)
    if getmetatable(self) ~= Client then error(("call it with a colon: client:%s(…)"):format(verb:lower()), 2) end
    if type(body) == "function" then
      error(("client:%s: the callback is the third argument, behind the body: client:%s(resource, nil, callback)"):format(verb:lower(),
        verb:lower()), 2)
    end
    if callback ~= nil and type(callback) ~= "function" then
      error(("client:%s: the callback must be a function (got a %s)"):format(verb:lower(), type(callback)), 2)
    end
    return self:call(verb, resource, body, callback and { callback = callback })
  end
end

--- Calls an endpoint with GET. With a callback it returns at once, and the callback gets what the call would have returned. Without, it
-- waits: in an endpoint or in `korv.spawn` others are served meanwhile, where no loop runs it runs the loop, in a luv callback it
-- raises.
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

--- Calls an endpoint and takes what it sends item by item, on a channel of its own: a slow reader delays only itself. Leaving the loop
-- cancels the endpoint.
-- @tparam string verb
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] table|function options `timeout` in seconds, for all of it (default: none); `callback`, which is called with each item, and
-- at the end with nil; or the callback itself
-- @return an iterator for a generic `for`: an item, or at last false, message and name where the stream failed or was answered with
-- another code than 2xx (`ESTATUS`). With a callback: the stream, which has a method `cancel`
-- @usage for item, problem in client:stream("GET", "/ticks") do print(problem or item) end
function Client:stream(verb, resource, body, options)
  if type(options) == "function" then options = { callback = options } end
  check_call(self, "stream", verb, resource, options)
  if type(body) == "function" then error("client:stream: the callback is the fourth argument, behind the body", 2) end
  local request = new_call(self, verb, resource, body, nil, nil).message
  request.stream = true
  request.timeout = options and options.timeout or nil
  local opened = stream.open(request, {
    way = self.way, transport = self.channel and self.transport, lost = self.lost,
    begun = function() count(self, 1) end, ended = function() count(self, -1) end,
  })
  if options and options.callback then return stream.deliver(opened, options.callback) end
  return stream.next, opened, nil, opened
end

--- Ends the connection for good. Calls under way return nil, message, `ECLOSED`.
function Client:close()
  self.ended = true
  self.lost = { message = "the client was closed", name = "ECLOSED" }
  if self.waiting then self.waiting:stop() end
  for transport in pairs(self.former) do transport:close() end
  if self.transport then
    self.transport:close()
  else
    on_closed(self, "ECLOSED", "the client was closed")
  end
end

Client.__close = Client.close
Client.__gc = Client.close

--- Connects, checks the host's key, logs in. Waits as `Client:get` does.
-- @tparam table options
--
-- - `host` (`"localhost"`), `port` (8022), `user` (the user's name; it decides nothing)
-- - `client_keys` a list of private key files (default: those in ~/.ssh that ssh would try), `passphrase` of encrypted ones
-- - `known_hosts` a file (`~/.ssh/known_hosts`), or false: the host's key is not checked
-- - `accept_new` an unknown host's key is added to that file (false)
-- - `ssh` runs the user's own ssh as transport, with its configuration, agent and jump hosts (false)
-- - `timeout` seconds for connecting and for each call (30)
-- - `keepalive` seconds of silence after which the server is asked for a sign of life; after three times that it is given up
--   (60; 0: never)
-- - `reconnect` a lost connection is made again as soon as there is a call to send; sent again are calls that were not sent yet, those
--   that a server which ended in order did not run, and GETs; others return nil and a message that says which (false)
-- - `max_packet_size` accepted for the first korv's sake
-- - `max_message_bytes`, `max_packed_bytes`, `max_request_bytes` (16 MiB), `max_depth` (128): limits of one message
-- @function korv.client
-- @treturn ?Client
-- @treturn ?string message
-- @treturn ?string name: `EHOSTKEY` (unknown host), `EHOSTKEYCHANGED`, `EAUTH` (no key is let in), `ECONNREFUSED`, `ETIMEDOUT`, …
local function new(options)
  options = check.take("korv.client", options, OPTIONS, 2)
  local self = setmetatable({
    options = options, timeout = options.timeout or TIMEOUT,
    calls = {}, queue = {}, live = {}, pending = 0, last_id = 0, due = math.huge,
    former = setmetatable({}, { __mode = "k" }), -- connections that are over but for streams that end on them
  }, Client)
  local weak = setmetatable({ client = self }, { __mode = "v" })
  self.timer = core.timer(function()
    if weak.client then end_late_calls(weak.client) end
  end)
  return task.wait(function(resume)
    self.opened = function(...)
      self.opened = nil
      resume(...)
    end
    connect(self)
    return function() self:close() end
  end)
end

return new
