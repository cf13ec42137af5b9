--- What the console's spec calls.
local korv = require "korv"

local ended = 0 -- streams that were given up or came to their end
local computed = {}

local NASTY = "esc \27]0;x\7 del \127 c1 \u{9b}31m bidi \u{202e} mark \u{200f} end"

return function(app)
  app:get("/hello", { doc = "Says hello." }, function() return 200, { msg = "Hello World!", list = korv.array { 1, true } } end)
  app:get("/nothing", function() return 204 end)
  app:get("/nasty", { doc = "doc \27[31m\u{202e}" }, function() return 200, { [NASTY] = NASTY } end)
  app:get("/nasty/stream", function(request)
    request:send(NASTY)
    return 200
  end)
  app:get("/steering\27[31m", function() return 200 end)

  app:get("/users", { doc = "Lists users." }, function() return 200, korv.array { "ann" } end)
  app:get("/users/:name", function(request) return 200, request.params end)
  app:get("/users/:name/mail", function() return 200 end)
  app:store("/users/:name", function(request) return 201, { name = request.params.name, body = request.body } end)
  app:get("/usage", function() return 200, korv.null end)
  app:update("/echo", function(request) return 200, request.body end)
  app:get("/echo", function(request) return 200, { body = request.body, query = request.query } end)

  app:get("/ticks", function(request)
    local closing <close> = setmetatable({}, { __close = function() ended = ended + 1 end }) -- luacheck: ignore 211
    for i = 1, tonumber(request.query.n) or math.huge do
      request:send { tick = i }
      korv.sleep(tonumber(request.query.every) or 0.02)
    end
    return 200
  end)
  app:get("/ended", function() return 200, { ended = ended } end)
  app:get("/wait", function(request)
    korv.sleep(tonumber(request.query.s))
    computed[#computed + 1] = request.query.s
    return 200, request.id
  end)
  app:get("/big", function(request) return 200, ("x"):rep(tonumber(request.query.n)) end)
  app:get("/flood", function(request)
    while true do request:send(("x"):rep(1000)) end
  end)
  app:get("/holdings", function()
    collectgarbage()
    collectgarbage()
    return 200, { bytes = math.floor(collectgarbage "count" * 1024) }
  end)
end
