--- Endpoints that the specs of SSH's own clients ask.
-- @module spec.asked

local korv = require "korv"

local asked = {
  --- How often /forever was cancelled.
  left = 0,
}

--- Adds them to an app.
-- @return it
function asked.add_endpoints(app)
  app:store("/same", function(request) return 200, request.body end)
  app:store("/length", function(request) return 200, #request.body end)
  app:get("/code/:code", function(request) return math.tointeger(tonumber(request.params.code)), { code = request.params.code } end)
  app:get("/long", function(request) return 200, ("x"):rep(request.body) end)
  app:get("/fails", function(request) return 507, ("x"):rep(request.body) end)
  app:get("/breaks", function(request)
    request:send(1)
    return 507, "full"
  end)
  app:get("/forever", function(request)
    local _ <close> = setmetatable({}, { __close = function() asked.left = asked.left + 1 end })
    request:send "begun"
    korv.await(function() end)
  end)
  return app
end

return asked
