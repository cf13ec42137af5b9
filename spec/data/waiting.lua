--- What the specs of waiting endpoints call: each waits, streams, computes or tells what the server holds.
local korv = require "korv"
local uv = require "luv"

local events = {}             -- what happened in endpoints that were given up
local ticks = 0               -- of calls to /tick
local slices                  -- of /slices, while it computes: when each began
local turns, per_turn = 0, {} -- turns of the loop, and how many requests of /turn began in the fullest of them
local nanoseconds = uv.hrtime

local function note(text)
  if #events < 100 then events[#events + 1] = text end -- most specs never look
end

local function guard(name)
  return setmetatable({}, { __close = function() note(name .. " closed") end })
end

-- Text that deflate can hardly shorten.
local function noise(bytes)
  local parts = {}
  for i = 1, bytes // 2 do parts[i] = ("%02x"):format(math.random(0, 255)) end
  return table.concat(parts)
end

local pads = {}
local function pad(bytes)
  pads[bytes] = pads[bytes] or noise(bytes)
  return pads[bytes]
end

local function compute(milliseconds)
  local till = nanoseconds() + milliseconds * 1e6
  while nanoseconds() < till do end
end

local counter = uv.new_prepare()
counter:start(function() turns = turns + 1 end)
counter:unref()

return function(app)
  app:get("/hello", function() return 200, "hello" end)
  app:store("/echo", function(request) return 200, request.body end)

  app:get("/sleep", function(request)
    local closing <close> = guard "sleep" -- luacheck: ignore
    korv.sleep(tonumber(request.query.s))
    return 200, request.id
  end)

  for _, verb in ipairs { "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/sleep", function(request)
      korv.sleep(tonumber(request.query.s))
      return 200, request.id
    end)
  end

  -- {seq, pad} of ?bytes, ?n times, or until it is given up.
  app:get("/items", function(request)
    local closing <close> = guard "items" -- luacheck: ignore
    local text = pad(tonumber(request.query.bytes) or 0)
    for i = 1, tonumber(request.query.n) or math.huge do
      request:send { seq = i, pad = text }
    end
    return 200
  end)

  -- Computes ?n slices of a millisecond, and tells how many calls of /tick were answered after each.
  app:get("/slices", function(request)
    local answered = korv.array {}
    slices = {}
    for i = 1, tonumber(request.query.n) do
      slices[i] = nanoseconds()
      compute(1)
      local before = ticks
      korv.sleep(0)
      answered[i] = ticks - before
    end
    slices = nil
    return 200, answered
  end)

  -- How many of these slices have begun since the body, which is a time of this machine in nanoseconds; null once they are over.
  app:get("/tick", function(request)
    ticks = ticks + 1
    if not slices then return 200 end
    local first = #slices + 1
    while first > 1 and slices[first - 1] > request.body do first = first - 1 end
    return 200, #slices + 1 - first
  end)

  -- Begins at once and computes nothing: counts how many begin in one turn of the loop.
  app:store("/turn", function()
    per_turn[turns] = (per_turn[turns] or 0) + 1
    return 200
  end)
  app:get("/turn", function()
    local most = 0
    for _, count in pairs(per_turn) do most = math.max(most, count) end
    per_turn = {}
    return 200, most
  end)

  app:get("/exec", function(request)
    local closing <close> = guard "exec" -- luacheck: ignore
    return 200, korv.exec({ "sh", "-c", "echo $$ >'" .. request.body .. "'; exec sleep 60" })
  end)

  app:get("/events", function()
    local list = events
    events = korv.array {}
    return 200, korv.array(list)
  end)

  app:get("/holdings", function()
    collectgarbage()
    collectgarbage()
    local handles = 0
    uv.walk(function() handles = handles + 1 end)
    return 200, { bytes = math.floor(collectgarbage "count" * 1024), handles = handles }
  end)
end
