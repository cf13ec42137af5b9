--- Endpoints that tell of the server, beside the app's: which others there are. They go through its middleware like all of its own.
-- @module korv.introspection

local help = require "korv.help"
local metrics = require "korv.metrics"
local json = require "korv.core".json

local introspection = {}

local PREFIX = "/korv"

--- What is wrong with the server's option `introspection`.
-- @tparam ?string|boolean prefix
-- @treturn ?string nil: nothing
function introspection.misuse(prefix)
  if not prefix or prefix:find "^/[^?]*[^/?]$" and not prefix:find "/[:*]" then return nil end
  return ("introspection must be false or the beginning of a resource, such as '/internal', not '%s'"):format(prefix)
end

--- Registers them on an app, before its `handler` is made. Where the app has an endpoint of the same resource, that stays.
-- @tparam App app
-- @tparam table server
function introspection.add(app, server)
  local prefix = server.options.introspection
  if prefix == false then return end
  prefix = prefix or PREFIX
  local resource = prefix .. "/endpoints"
  metrics.add(app, server, prefix)
  local present = app.routes:match("GET", resource)
  if present and present.resource == resource then return end
  app.routes:add("GET", resource, function(request)
    return 200, json.array(help.endpoints(server, request.peer))
  end, { doc = "The endpoints that you may call." })
end

return introspection
