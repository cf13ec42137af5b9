--- What a person writes endpoints against: registers them and their middleware, makes of them the one function that answers a
-- request, and shapes the answers for what went wrong. Knows nothing of the wire, of JSON, or of coroutines: whatever runs here may yield.
-- @module korv.app

local permissions = require "korv.permissions"
local router = require "korv.router"
local log = require "korv.log"

local app = {}

local App = {}
App.__index = App

-- What an HTTP framework would have.
local FOREIGN = { post = "store", put = "update", patch = "update", head = "get", route = "add_callback" }
setmetatable(App, { __index = function(_, name)
  if FOREIGN[name] then error(("app:%s: the verbs are get, store, update and delete; try app:%s"):format(name, FOREIGN[name]), 2) end
end })

local RESOURCE_BYTES = 65536 -- a longer one is refused before anything is split or decoded
local ENDPOINT_OPTIONS = { doc = "string", timeout = "number", roles = "table" }
local APP_OPTIONS = {}
local NO_LITERALS = {}
local UNCOUNTED = { slot = function() return 0 end, mark = function() end }

local function check_options(options, known, where, level)
  if options == nil then return end
  if type(options) ~= "table" then
    error(("%s: options must be a table, and come before the endpoint (got a %s)"):format(where, type(options)), level + 1)
  end
  for key, value in pairs(options) do
    local kind = known[key]
    if not kind then error(("%s: unknown option '%s'"):format(where, tostring(key)), level + 1) end
    if type(value) ~= kind then
      error(("%s: option '%s' must be a %s (got a %s)"):format(where, key, kind, type(value)), level + 1)
    end
    if kind == "number" and (value <= 0 or value ~= value) then
      error(("%s: option '%s' must be a positive number of seconds (got %s)"):format(where, key, value), level + 1)
    end
  end
end

local function check_roles(roles, where, level)
  if #roles == 0 then error(("%s: roles must be a list that names one at least"):format(where), level + 1) end
  for i = 1, #roles do
    if type(roles[i]) ~= "string" then error(("%s: a role must be a string (got a %s)"):format(where, type(roles[i])), level + 1) end
  end
end

--- An app without endpoints.
-- @tparam[opt] table options none is known yet
-- @treturn App
function app.new(options)
  check_options(options, APP_OPTIONS, "app.new", 2)
  return setmetatable({
    routes = router.new(), middleware = {}, checks = {}, unloads = {}, frozen = false,
    --- A table that outlives a reload: what one load of the scripts leaves in it the next one finds.
    state = {},
    --- Which load of the scripts this is, counted from 1.
    generation = 1,
  }, App)
end

--- An app that begins with another's endpoints, middleware and checks, and has fields of its own.
-- @tparam ?App base
-- @tparam table fields `state`, `generation`; `reloader`: a function that `App:reload` is
-- @treturn App
function app.after(base, fields)
  local self = app.new()
  for name, value in pairs(fields) do self[name] = value end
  if not base then return self end
  for _, entry in ipairs(base.routes:entries()) do self.routes:add(entry.verb, entry.resource, entry.endpoint, entry.options) end
  table.move(base.middleware, 1, #base.middleware, 1, self.middleware)
  table.move(base.checks, 1, #base.checks, 1, self.checks)
  return self
end

local function check_open(self, method, level)
  if getmetatable(self) ~= App then error(("call it with a colon: app:%s(…)"):format(method), level + 1) end
  if self.frozen then
    error(("app:%s: the app is serving already; register endpoints and middleware while the script loads"):format(method), level + 1)
  end
end

-- A copy: who registers several endpoints may change one table in between, and must not open what is registered already.
local function own_options(options, common_roles)
  local own = { roles = common_roles }
  for name, value in pairs(options or {}) do own[name] = value end
  own.roles = own.roles and table.move(own.roles, 1, #own.roles, 1, {})
  return own
end

-- Called by the methods, and not as a tail call: an error names the line of the script that called them.
local function register(self, method, verb, resource, options, endpoint)
  check_open(self, method, 3)
  if endpoint == nil then options, endpoint = nil, options end
  local where = ("%s %s"):format(tostring(verb), tostring(resource))
  check_options(options, ENDPOINT_OPTIONS, where, 3)
  if options and options.roles then check_roles(options.roles, where, 3) end
  self.routes:add(verb, resource, endpoint, own_options(options, self.common_roles), 3)
end

--- Registers the endpoint that answers GET of a resource. An endpoint is called with the request and returns a code and a body.
-- @tparam string resource begins with `/`; a segment `:name` matches any one, a last segment `*name` all the rest
-- @tparam[opt] table options `doc`: a text that says what the endpoint is for; `timeout`: seconds after which it is cancelled, and the
-- answer is 504; `roles`: a list, of which the calling key needs one, else the answer is 403
-- @tparam function endpoint
function App:get(resource, options, endpoint) register(self, "get", "GET", resource, options, endpoint) end

--- Registers the endpoint that answers STORE of a resource. Arguments as in `App:get`.
-- @tparam string resource
-- @tparam[opt] table options
-- @tparam function endpoint
function App:store(resource, options, endpoint) register(self, "store", "STORE", resource, options, endpoint) end

--- Registers the endpoint that answers UPDATE of a resource. Arguments as in `App:get`.
-- @tparam string resource
-- @tparam[opt] table options
-- @tparam function endpoint
function App:update(resource, options, endpoint) register(self, "update", "UPDATE", resource, options, endpoint) end

--- Registers the endpoint that answers DELETE of a resource. Arguments as in `App:get`.
-- @tparam string resource
-- @tparam[opt] table options
-- @tparam function endpoint
function App:delete(resource, options, endpoint) register(self, "delete", "DELETE", resource, options, endpoint) end

--- Registers an endpoint, the verb being an argument.
-- @tparam string verb `GET`, `STORE`, `UPDATE` or `DELETE`
-- @tparam string resource
-- @tparam function endpoint
function App:add_callback(verb, resource, endpoint) register(self, "add_callback", verb, resource, nil, endpoint) end

--- Whatever this script registers from here on without `roles` of its own needs one of these.
-- @tparam string ... roles
function App:roles(...)
  check_open(self, "roles", 2)
  check_roles({ ... }, "app:roles", 2)
  self.common_roles = { ... }
end

--- Adds middleware: a function that is called around every endpoint of the app, wherever that was registered, and around the 404
-- for a resource without one. The first added is the outermost. It returns a code and a body: those of `next(request)`, or its own.
-- @tparam function middleware called with the request and `next`
function App:use(middleware)
  check_open(self, "use", 2)
  if not router.callable(middleware) then
    error(("app:use: the middleware must be a function (got a %s)"):format(type(middleware)), 2)
  end
  self.middleware[#self.middleware + 1] = middleware
end

--- Adds a check, which is run when all scripts have been loaded, before they serve; it may wait. Where it refuses, the load fails: at a
-- reload what was there before goes on serving.
-- @tparam function check called with the app; refuses by an error, or by returning nil or false and a message. One that returns nothing
-- at all agrees.
function App:check(check)
  check_open(self, "check", 2)
  if not router.callable(check) then error(("app:check: the check must be a function (got a %s)"):format(type(check)), 2) end
  self.checks[#self.checks + 1] = check
end

--- Adds a function to be called, in a task of its own, when what this load of the scripts made is used no more: another load has taken
-- its place and its last request has ended, or it failed.
-- @tparam string event `unload`
-- @tparam function fn
function App:on(event, fn)
  if getmetatable(self) ~= App then error("call it with a colon: app:on(…)", 2) end
  if event ~= "unload" then error(("app:on: the event is 'unload' (got %s)"):format(tostring(event)), 2) end
  if not router.callable(fn) then error(("app:on: the second argument must be a function (got a %s)"):format(type(fn)), 2) end
  self.unloads[#self.unloads + 1] = fn
end

--- Loads the scripts again, as when one of them has changed, and waits for it.
-- @treturn ?boolean true once the new endpoints serve
-- @treturn ?string message why they do not
-- @treturn ?string name
function App:reload()
  if getmetatable(self) ~= App then error("call it with a colon: app:reload()", 2) end
  if not self.reloader then return nil, "app:reload: no scripts are served by this app", "ENOTSUP" end
  local ok, message, name = self.reloader()
  return ok, message, name
end

-- Whether what a check returned is a yes: one that returns nothing has raised nothing.
local function agreed(...)
  local ok, message = ...
  if select("#", ...) == 0 or ok then return true end
  return false, message == nil and "it did not say why" or tostring(message)
end

--- Checks what the scripts have made.
-- @treturn ?boolean true
-- @treturn ?string message
function App:verify()
  if #self.routes:all() == 0 then return nil, "no endpoint is registered: a script's function calls app:get and the like" end
  for _, check in ipairs(self.checks) do
    local ok, message = agreed(check(self))
    if not ok then return nil, ("%s: app:check refused: %s"):format(router.where(check), message) end
  end
  return true
end

--- Makes the functions that `App:on` was given known, the last first, and forgets them.
-- @treturn {function,...}
function App:take_unloads()
  local list = {}
  for i = #self.unloads, 1, -1 do list[#list + 1] = self.unloads[i] end
  self.unloads = {}
  return list
end

local function around(middleware, inner)
  local function proceed(request)
    if request == nil then
      error(("the middleware at %s called next without the request: write `return next(request)`"):format(router.where(middleware)), 0)
    end
    return inner(request)
  end
  return function(request) return middleware(request, proceed) end
end

local function compose(list, endpoint)
  for i = #list, 1, -1 do endpoint = around(list[i], endpoint) end
  return endpoint
end

local function not_found() return 404 end

local function too_long()
  return 400, { message = ("The resource is longer than %d bytes"):format(RESOURCE_BYTES) }
end

-- For whatever is not a literal without a query: fills in params and query on the way.
local function dispatcher(routes, known, mark, missing, refused)
  return function(request)
    local resource = request.resource
    if #resource > RESOURCE_BYTES then return refused(request) end
    local path, query = router.split(resource)
    local entry, params = routes:match(request.verb, path)
    if query then request.query = router.query(query) end
    if not entry then return missing(request) end
    if params then request.params = params end
    local found = known[entry]
    mark(found.slot)
    return found.run(request)
  end
end

-- The endpoint's own deadline, which counts from its middleware on.
local function bounded(run, entry, deadline)
  local seconds = entry.options and entry.options.timeout
  if not seconds then return run end
  return function(request)
    deadline(request, seconds)
    return run(request)
  end
end

local function forbidden() return 403, { message = "This key may not call this endpoint" } end

-- Nothing of the app's runs for who has none of the endpoint's roles.
local function guarded(run, entry)
  local roles = entry.options and entry.options.roles
  if not roles then return run end
  return function(request)
    if not permissions.has_role(request.peer, roles) then return forbidden() end
    return run(request)
  end
end

--- Freezes the app and returns what answers a request. It may yield, and what an endpoint raises comes out of it.
-- @tparam[opt] function deadline called with a request and the seconds after which it has to end
-- @tparam[opt] table counting how requests are counted: `slot(entry)` gives a number for a router's entry, `mark(slot)` is called with
-- that of each request's, as it begins
-- @treturn function called with a request (`verb`, `resource`, …; it adds `params` and `query` where there are any), returns a code
-- and a body
function App:handler(deadline, counting)
  self.frozen = true
  local literals, known = {}, {}
  counting = counting or UNCOUNTED
  local mark = counting.mark
  for _, entry in ipairs(self.routes:all()) do
    local run = guarded(bounded(compose(self.middleware, entry.endpoint), entry, deadline), entry)
    entry.middleware = #self.middleware > 0
    known[entry] = { run = run, slot = counting.slot(entry) }
    literals[entry.verb] = literals[entry.verb] or {}
    if not entry.parameters then literals[entry.verb][entry.resource] = known[entry] end
  end
  local dispatch = dispatcher(self.routes, known, mark, compose(self.middleware, not_found), compose(self.middleware, too_long))
  return function(request)
    local only = request.peer and request.peer.only
    if only and not permissions.unlocked(only, request) then return forbidden() end
    local found = (literals[request.verb] or NO_LITERALS)[request.resource]
    if not found then return dispatch(request) end
    mark(found.slot)
    return found.run(request)
  end
end

--- The router's entry for a request.
-- @tparam table request
-- @treturn ?table see `korv.router`; nil where no endpoint answers the request
function App:entry(request)
  local path = router.split(request.resource)
  return (self.routes:match(request.verb, path))
end

local function is_code(code) return math.type(code) == "integer" and code >= 100 and code <= 599 end

local function described(value)
  if type(value) == "number" then return tostring(value) end
  return value == nil and "nil" or "a " .. type(value)
end

local Abort = { __name = "korv.abort" }
function Abort.__tostring(abort) return ("korv.abort with code %d"):format(abort.code) end

--- Leaves the endpoint, from however deep, with this answer.
-- @tparam[opt=500] int code from 100 to 599
-- @param[opt] body
function app.abort(code, body)
  if code == nil then code = 500 end
  if not is_code(code) then
    error(("abort: the code, its first argument, is an integer from 100 to 599 (got %s)"):format(described(code)), 2)
  end
  error(setmetatable({ code = code, body = body }, Abort))
end

--- Tells what `abort` raised from other errors.
-- @param err what was raised
-- @treturn ?int the code; nil where err is another error
-- @return the body
function app.aborted(err)
  if getmetatable(err) ~= Abort then return nil end
  return err.code, err.body
end

local function error_text(err)
  if type(err) == "string" then return err end
  local meta = getmetatable(err)
  if type(err) == "number" or type(meta) == "table" and meta.__tostring then
    local ok, text = pcall(tostring, err)
    if ok then return text end
  end
  return ("(error object is a %s value)"):format(type(err))
end

-- Errors quote what they stumbled upon; an answer has to be UTF-8.
local function to_utf8(text)
  local parts, from = {}, 1
  local _, bad = utf8.len(text)
  while bad do
    parts[#parts + 1] = text:sub(from, bad - 1)
    from = bad + 1
    _, bad = utf8.len(text, from)
  end
  parts[#parts + 1] = text:sub(from)
  return table.concat(parts, "\u{FFFD}")
end

-- A sequence of its own, since an endpoint that calls math.randomseed would repeat ids. (Knuth's constants for 64 bits.)
local id_state = math.random(0)
local function error_id()
  id_state = id_state * 6364136223846793005 + 1442695040888963407
  return ("%08x"):format(id_state >> 32)
end

--- The answer for an error that escaped an endpoint: an abort's own, else a 500 that tells what happened, or, with
-- `tracebacks = false`, only the id under which the log tells it.
-- @param err what was raised
-- @tparam ?string traceback
-- @tparam[opt] table options `tracebacks`; `log`: called with a level and a message (default: `korv.log`)
-- @treturn int the code
-- @return the body
function app.failure(err, traceback, options)
  local code, body = app.aborted(err)
  if code then return code, body end
  local message = error_text(err)
  if type(traceback) ~= "string" then traceback = "" end -- debug.traceback hands back an error that is no string
  if not (options and options.tracebacks == false) then
    return 500, { message = to_utf8(message), traceback = to_utf8(traceback) }
  end
  local id = error_id()
  local write = options.log or function(level, text) log[level]("%s", text) end
  write("error", ("error %s: %s\n%s"):format(id, message, traceback))
  return 500, { message = "Internal error", error_id = id }
end

local function place(entry)
  if type(entry) == "string" then return entry end
  return entry and entry.where or "no endpoint"
end

--- Says what is wrong with what an endpoint returned.
-- @param entry the router's entry, or a text that says where the endpoint is; nil where there is none and middleware answered
-- @tparam table request
-- @param code
-- @param body
-- @treturn ?string the text; nil where the code is good
function app.invalid_result(entry, request, code, body)
  if is_code(code) then return nil end
  local subject = ("%s %s (%s)"):format(request.verb, request.resource, place(entry))
  local text
  if code == nil and body == nil then
    text = subject .. " returned nothing: return a code and a body, as in `return 200, { msg = \"hi\" }`"
  else
    text = ("%s returned %s as its code: the code comes first and is an integer from 100 to 599, as in `return 200, { msg = \"hi\" }`")
      :format(subject, described(code))
  end
  if entry == nil or type(entry) == "table" and entry.middleware then
    text = text .. "; middleware passes on what it is given with `return next(request)`"
  end
  return text
end

return app
