--- Endpoints that log a lot: numbered lines, from a timer of luv's, while others are served.
local korv = require "korv"
local uv = require "luv"

korv.log.level "warn" -- no access lines in between

local BURST = 100
local FILL = ("x"):rep(60)

return function(app)
  local logged = 0

  -- Logs body lines, a burst each millisecond.
  app:store("/lines", function(request)
    local most, timer = logged + request.body, uv.new_timer()
    korv.await(function(resume)
      timer:start(0, 1, function()
        for _ = 1, math.min(BURST, most - logged) do
          logged = logged + 1
          korv.log.warn("line %d %s", logged, FILL)
        end
        if logged == most then resume() end
      end)
      return function() timer:close() end
    end)
    timer:close()
    return 200, logged
  end)

  app:get("/hello", function() return 200, "hello" end)
end
