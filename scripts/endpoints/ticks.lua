-- A stream, and a watch that a client can take up again where it left off.
local korv = require "korv"

local KEPT = 100 -- events that are remembered for those who come back

local events, last = {}, 0 -- by sequence number
local watchers = {}        -- resume functions

local function publish(event)
  last = last + 1
  events[last], events[last - KEPT] = event, nil
  local waiting = watchers
  watchers = {}
  for resume in pairs(waiting) do resume() end
end

local function wait_for_event()
  korv.await(function(resume)
    watchers[resume] = true
    return function() watchers[resume] = nil end
  end)
end

return function(app)
  app:get("/ticks", { doc = "Streams a count, ?every seconds (0.5), ?n times (10)." }, function(request)
    for i = 1, tonumber(request.query.n) or 10 do
      request:send(i)
      korv.sleep(tonumber(request.query.every) or 0.5)
    end
    return 200
  end)

  app:store("/events", { doc = "Publishes the body to all who watch." }, function(request)
    publish(request.body)
    return 201, { seq = last }
  end)

  -- Each item is {seq, event}; since is the last number that the client has. What it missed and is forgotten is said, not skipped.
  app:get("/events", { doc = "Streams events from ?since on (default: new ones)." }, function(request)
    local at = tonumber(request.query.since) or last
    while true do
      local oldest = math.max(1, last - KEPT + 1)
      if at + 1 < oldest then
        request:send { truncated = true, missed = oldest - at - 1 }
        at = oldest - 1
      end
      while at < last do
        at = at + 1
        if events[at] ~= nil then request:send { seq = at, event = events[at] } end
      end
      wait_for_event()
    end
  end)
end
