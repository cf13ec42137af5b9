--- What runaway_spec.lua calls besides the runaways: endpoints that compute as they may, and others that leave something behind which
-- computes as it may not.
local korv = require "korv"
local uv = require "luv"

local runaways = dofile(debug.getinfo(1, "S").source:match "^@(.*/)" .. "runaway.lua")

local function spin()
  while true do end
end

local function compute(seconds)
  local begin = os.clock()
  while os.clock() - begin < seconds do end
end

local closed = {}

local function guard(name)
  return setmetatable({}, { __close = function() closed[#closed + 1] = name end })
end

return function(app)
  runaways(app)

  app:get("/hello", function() return 200, "hello" end)

  app:get("/compute", function(request)
    compute(tonumber(request.query.s))
    return 200, "done"
  end)

  app:get("/slices", function(request)
    for _ = 1, tonumber(request.query.n) do
      compute(tonumber(request.query.s))
      korv.sleep(0)
    end
    return 200, "done"
  end)

  app:get("/awaits", function()
    korv.await(spin)
    return 200
  end)

  app:get("/late", function()
    korv.sleep(0.01)
    spin()
  end)

  app:get("/closing", function()
    closed = {}
    local _ <close> = guard "endpoint"
    coroutine.wrap(function()
      local _ <close> = guard "coroutine"
      pcall(spin)
    end)()
  end)

  app:get("/closed", function() return 200, korv.array(closed) end)

  -- The answer has gone when the runaway begins.
  app:get("/after/spawn", function()
    korv.spawn(spin)
    return 200
  end)

  app:get("/after/callback", function()
    local timer = uv.new_timer()
    timer:start(1, 0, function()
      timer:close()
      pcall(spin)
    end)
    return 200
  end)

  app:get("/after/closing", function()
    local held = setmetatable({}, { __close = spin })
    korv.spawn(function()
      local _ <close> = held
      error "closes"
    end)
    return 200
  end)

  app:get("/bytes", function()
    for _ = 1, 2 do collectgarbage() end
    return 200, math.floor(collectgarbage "count" * 1024)
  end)
end
