--- Tests of an app without a network: what is asked goes the way of every request, through middleware, deadlines, streams and the JSON
-- codec, but within this process. No keys, no sockets, no files but the scripts.
-- @module korv.test
-- @usage
-- local t = korv.test("app.lua")
-- local code, body = t:get("/hello")
-- t:close()

local core = require "korv.core"
local app = require "korv.app"
local check = require "korv.options"
local generation = require "korv.generation"
local responder = require "korv.responder"
local stream = require "korv.stream"
local task = require "korv.task"
local uv = require "luv"

local Test = {}
Test.__index = Test

local APP = getmetatable(app.new())
local OPTIONS = { peer = "table", timeout = "number", tracebacks = "boolean", json = "codec", cpu_limit = "seconds or 0" }
local CALL_OPTIONS = { timeout = "seconds", peer = "table" }
local PEER = { fingerprint = "string", name = "string", roles = "table", address = "string", login = "string" }
local TIMEOUT = 30  -- seconds, as a client has it
local PATIENCE = 5 -- seconds that what an app does at its end may take

-- A way in for one request, with the face of a client's channel -----------------------------------------------------------------------

local Channel = {}
Channel.__index = Channel

local function open(self, peer, on_message, on_closed)
  local channel = setmetatable({ channels = self.channels, on_closed = on_closed }, Channel)
  channel.caller = self.core:caller(peer, { answer = function(id, code, body, more)
    channel.busy = true
    on_message { request_id = core.json.decode(id), code = code, body = core.json.decode(body), more = more }
    channel.busy = false
    if channel.ended then core.spawn(channel.close, channel) end
  end })
  self.channels[channel] = true
  return channel
end

function Channel:send(message)
  local text, problem, name = core.json.encode(message)
  if not text then return nil, problem:gsub("^value%.", ""), name end
  uv.update_time() -- deadlines count from now, though no loop may have run for long
  return self.caller:message(text)
end

function Channel:pause(whether) self.caller:hold(whether) end

-- The core still needs the caller while it hands over an answer.
function Channel:close()
  self.ended = true
  if self.busy then return end
  self.channels[self] = nil
  self.caller:close()
end

-- Asking --------------------------------------------------------------------------------------------------------------------------------

local function merged(base, peer, what, level)
  if not peer then return base end
  check.check(what .. ": peer", peer, PEER, level + 1)
  local all = {}
  for field, value in pairs(base) do all[field] = value end
  for field, value in pairs(peer) do all[field] = value end
  return all
end

-- The message that asks, and who does.
local function new_request(self, method, verb, resource, body, options)
  local what = "test:" .. method
  if getmetatable(self) ~= Test then error(("call it with a colon: t:%s(…)"):format(method), 3) end
  if self.closed then error(what .. ": it was closed", 3) end
  if type(verb) ~= "string" then error(what .. ": the verb must be a string, such as \"GET\"", 3) end
  if type(resource) ~= "string" then error(what .. ": the resource must be a string, such as \"/hello\"", 3) end
  if options ~= nil then check.check(what, options, CALL_OPTIONS, 3) end
  self.last_id = self.last_id + 1
  if body == nil and (verb == "STORE" or verb == "UPDATE") then body = core.json.null end
  return { id = self.last_id, verb = verb, resource = resource, body = body, timeout = options and options.timeout or TIMEOUT },
    merged(self.peer, options and options.peer, what, 3)
end

local function ask(self, request, peer)
  local channel
  local response, message, name = task.wait(function(resume)
    local function failed(code, problem) resume(nil, ("%s %s: %s"):format(request.verb, request.resource, problem), code) end
    channel = open(self, peer, resume, failed)
    local ok, problem, code = channel:send(request)
    if not ok then failed(code, problem) end
    return function() channel:close() end
  end, 4)
  channel:close()
  if not response then return nil, message, name end
  return response.code, response.body
end

--- Calls an endpoint and waits for its answer: in `korv.spawn` others go on meanwhile, where no loop runs it runs the loop.
-- @tparam string verb `GET`, `STORE`, `UPDATE` or `DELETE`
-- @tparam string resource `/hello`, `/search?q=lua`
-- @param[opt] body any value that JSON can hold
-- @tparam[opt] table options `timeout` in seconds (30), past which the answer is 504; `peer`: fields of who asks, as for `korv.test`
-- @treturn ?int the code; nil where the body that was given has no JSON form
-- @return the body, as a client gets it (`korv.null` where there is none), or a message
-- @treturn ?string name, such as `EJSON`
function Test:call(verb, resource, body, options)
  local results = table.pack(ask(self, new_request(self, "call", verb, resource, body, options)))
  return table.unpack(results, 1, results.n)
end

local function method(verb, takes_body)
  local name = verb:lower()
  return function(self, resource, body, options)
    if not takes_body then body, options = nil, body end
    local results = table.pack(ask(self, new_request(self, name, verb, resource, body, options)))
    return table.unpack(results, 1, results.n)
  end
end

--- Calls an endpoint with GET; see `Test:call`.
-- @function Test:get
-- @tparam string resource
-- @tparam[opt] table options
-- @treturn int the code
-- @return the body
Test.get = method("GET", false)

--- Calls an endpoint with STORE; see `Test:call`.
-- @function Test:store
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] table options
-- @treturn int the code
-- @return the body
Test.store = method("STORE", true)

--- Calls an endpoint with UPDATE; see `Test:call`.
-- @function Test:update
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] table options
-- @treturn int the code
-- @return the body
Test.update = method("UPDATE", true)

--- Calls an endpoint with DELETE; see `Test:call`.
-- @function Test:delete
-- @tparam string resource
-- @tparam[opt] table options
-- @treturn int the code
-- @return the body
Test.delete = method("DELETE", false)

-- Streams ---------------------------------------------------------------------------------------------------------------------------------

local Items = {}
Items.__index = Items

function Items:__call()
  local item, message, name = stream.next(self.stream)
  local last = item == nil or item == false and message ~= nil
  if not last then return item end
  self.code, self.body = self.stream.code, self.stream.body
  if self.code then return nil end
  return nil, message, name
end

--- Gives the stream up: its endpoint is cancelled.
function Items:cancel() self.stream:cancel() end

Items.__close = Items.cancel

local function nothing() end

--- Calls an endpoint as a client does that takes a stream. An endpoint waits while more items are unread than a client would hold.
-- @tparam string verb
-- @tparam string resource
-- @param[opt] body
-- @tparam[opt] table options as for `Test:call`; the timeout is that of the whole stream
-- @treturn Items to be called for the next item, until it returns nil: then `code` and `body` are its fields; where the body that was given
-- has no JSON form it returns nil, a message and `EJSON`. Its method `cancel`, and leaving a generic `for` over it, cancel the endpoint
-- @usage
-- local items = t:stream("GET", "/ticks")
-- for item in items do print(item) end
-- print(items.code, items.body)
function Test:stream(verb, resource, body, options)
  local request, peer = new_request(self, "stream", verb, resource, body, options)
  request.stream = true
  local transport = { channel = function(_, ...) return open(self, peer, ...) end }
  local items = setmetatable({ stream = stream.open(request, { transport = transport, begun = nothing, ended = nothing }) }, Items)
  return items, nil, nil, items
end

-- Life ------------------------------------------------------------------------------------------------------------------------------------

local function unload(own, done)
  local left = 1
  local function one_less()
    left = left - 1
    if left == 0 then done() end
  end
  for _, fn in ipairs(own:take_unloads()) do
    left = left + 1
    core.spawn(function()
      local ending <close> = setmetatable({}, { __close = one_less }) -- luacheck: ignore 211
      fn()
    end)
  end
  one_less()
end

-- The last request of the generation that was asked has ended: what its scripts want to do at their end is done, and that is all.
local function retired(self)
  return function(number)
    if number == self.generation.number then unload(self.app, function() self.core:close() end) end
  end
end

local function core_options(self, options)
  return {
    sockets = {}, keys = {}, generation = self.generation.number, handler = responder.handler(self.app, options.json),
    request = responder.Request, failed = responder.failures(self), timeout = options.timeout,
    retired = retired(self), ended = function() self.on_ended() end,
    authorize = nothing, closed = nothing, refused = nothing, converse = nothing,
  }
end

local function stopped() return 503 end

local function begin_to_close(self, done)
  local patience = core.timer(function() self.core:close() end)
  function self.on_ended()
    patience:stop()
    done()
  end
  patience:start(PATIENCE)
  self.closed = true
  if self.generation.stop then self.generation:stop() end
  local channels = self.channels
  self.channels = {}
  for channel in pairs(channels) do
    channel:close()
    channel.on_closed("ECLOSED", "the test was closed")
  end
  self.core:handle(stopped, self.generation.number + 1)
end

--- Ends it: what still runs is cancelled, timers of `korv.every` stop, what the scripts gave to `app:on("unload", …)` is called, and
-- nothing is left open. Waits for that, unless it is called in a luv callback. Also done at the end of a scope: `local t <close> = …`.
function Test:close()
  if self.closed then return end
  if core.here() or not uv.loop_mode() then
    task.wait(function(resume) begin_to_close(self, resume) end)
  else
    begin_to_close(self, nothing)
  end
end

Test.__close = Test.close

local function load_scripts(paths, level)
  if #paths == 0 then error("korv.test: name scripts or folders, or give an app", level + 1) end
  local loaded, message = task.wait(function(resume) generation.load(paths, {}, resume) end, level + 2)
  if not loaded then error("korv.test: " .. message, level + 1) end
  loaded:start()
  return loaded
end

-- The arguments: paths or an app, and options behind them.
local function sort_out(...)
  local list = { ... }
  local options, own = {}, nil
  if type(list[#list]) == "table" and getmetatable(list[#list]) ~= APP then options = table.remove(list) end
  if getmetatable(list[1]) == APP then own = table.remove(list, 1) end
  for _, path in ipairs(list) do
    if own or type(path) ~= "string" then
      error(("korv.test: give paths, or one app, and options last (a %s is none of these here)"):format(type(path)), 3)
    end
  end
  check.check("korv.test", options, OPTIONS, 3)
  return list, own, options
end

--- Makes what asks an app without a network. An error where a script cannot be loaded says why, with file and line.
-- @function korv.test
-- @param ... scripts and folders, as for `korv serve`, or an app that `korv.app` made; options may come last:
--
-- - `peer` who asks: a table of `name`, `fingerprint`, `roles`, `address`, `login`, of which any may be missing
-- - `timeout` seconds for any request, as for a server (0: none)
-- - `tracebacks` whether a 500 carries its traceback (true)
-- - `json` another codec for bodies, as for a server
-- - `cpu_limit` seconds that an endpoint may compute without waiting (1; 0: any)
-- @treturn Test
local function new(...)
  local paths, own, options = sort_out(...)
  local peer = { name = "test", fingerprint = "SHA256:test", roles = {}, address = "127.0.0.1", login = "test" }
  local self = setmetatable({
    peer = merged(peer, options.peer, "korv.test", 2), tracebacks = options.tracebacks ~= false, channels = {}, last_id = 0,
  }, Test)
  core.cpu_limit(options.cpu_limit or 1)
  self.generation = own and { app = own, number = 1 } or load_scripts(paths, 2)
  --- The app that answers, with its `state`.
  self.app = self.generation.app
  self.core = check.call("korv.test", 2, core.server, core_options(self, options))
  return self
end

return new
