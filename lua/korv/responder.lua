--- What the core needs of an app to answer requests, wherever they come from: over SSH, or from a test in this process.
-- Knows nothing of keys, sockets or connections.
-- @module korv.responder

local core = require "korv.core"
local app = require "korv.app"
local log = require "korv.log"

local responder = {}

--- The metatable of requests: a request's table has `params` and `query` without anybody having made them, and `request:send`.
responder.Request = {}
function responder.Request.__index(request, field)
  if field == "send" then return core.send end
  if field ~= "params" and field ~= "query" then return nil end
  local empty = {}
  rawset(request, field, empty)
  return empty
end

--- What the core asks when an endpoint did not bring an answer.
-- @tparam table server `tracebacks`: whether a 500 carries its own; `generation`: what answers at the moment, for its `app`
-- @treturn function called with what went wrong and what there is to know of it, returns a code and a body
function responder.failures(server)
  local handlers = {}
  function handlers.error(err, traceback)
    local code, body = app.failure(err, traceback, { tracebacks = server.tracebacks })
    if server.tracebacks and not app.aborted(err) then log.error("an endpoint failed: %s\n%s", body.message, body.traceback) end
    return code, body
  end
  function handlers.result(request, code, body)
    local message = app.invalid_result(server.generation.app:entry(request), request, code, body)
    log.error("%s", message)
    return 500, { message = message }
  end
  function handlers.body(message)
    log.error("an endpoint's body cannot be sent: %s", message)
    return 500, { message = message }
  end
  return function(kind, ...) return handlers[kind](...) end
end

--- What the core calls with each request. It freezes the app.
-- @tparam App endpoints
-- @tparam[opt] table json another codec that the app chose: bodies are then strings of JSON on the way through the core
-- @tparam[opt] table counting see `korv.app`
-- @treturn function
function responder.handler(endpoints, json, counting)
  local handler = endpoints:handler(core.deadline, counting)
  if not json then return handler end
  return function(request)
    if request.body ~= nil then request.body = json.decode(core.json.encode(request.body)) end
    local code, body = handler(request)
    if body ~= nil then body = core.json.decode(json.encode(body)) end
    return code, body
  end
end

return responder
