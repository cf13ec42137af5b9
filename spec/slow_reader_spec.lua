--- Streams to readers that are slower than the sender, or stop: they wait, cost the server little and hold up nobody else. 1 GB with
-- KORV_FULL=1, else 50 MB.

local crowd = require "spec.peers.crowd"
local cut_proxy = require "spec.peers.cut_proxy"
local korv = require "korv"
local pair = require "spec.pair"
local waiting = require "spec.waiting"

describe("a stream", function()
  setup(pair.begin)
  teardown(pair.finish)

  for _, pairing in ipairs(crowd.pairings) do
    describe("that is long, over " .. pairing.name .. ", to a reader that stops in the middle", function()
      local own, peers
      local ITEM_BYTES = 64 * 1024
      local count = (waiting.full and 1024 or 50) * waiting.MEBIBYTE // ITEM_BYTES

      setup(function()
        own = waiting.serve()
        peers = crowd.start()
      end)

      it("costs the server less than 4 MiB, holds up no other channel, and arrives whole and in order", function()
        local long = ("/items?n=%d&bytes=%d"):format(count, ITEM_BYTES)
        peers:order("stream", pairing, { port = own.port, name = "first", resource = "/items?n=50&bytes=" .. ITEM_BYTES })
        peers:order("finish", pairing, { name = "first" })
        local before = own:rss_bytes()
        peers:order("stream", pairing, { port = own.port, name = "long", resource = long, pause = count // 2, timeout = 120 }, 120)
        local most = 0
        for _ = 1, 20 do
          assert.equal(200, peers:order("one", pairing, { on = "long", resource = "/hello" }).code)
          most = math.max(most, own:rss_bytes() - before)
        end
        peers:order("stream", pairing, { on = "long", name = "beside", resource = "/items?n=100&bytes=1000" })
        assert.equal(100, peers:order("finish", pairing, { name = "beside" }).items)
        local told = peers:order("finish", pairing, { name = "long", timeout = 120 }, 120)
        assert.same({ count, true, 200 }, { told.items, told.in_order, told.code })
        if waiting.is_measured then assert.is_true(most < 4 * waiting.MEBIBYTE, ("%.1f MiB"):format(most / waiting.MEBIBYTE)) end
      end)

      for what, abort in pairs { ["its channel is closed"] = false, ["its connection is lost"] = true } do
        it("is cancelled at once when " .. what, function()
          local caller = assert(pair.dial(own))
          caller:get "/events"
          peers:order("stream", pairing, { port = own.port, name = "dropped", resource = "/items?bytes=60000", pause = 20 })
          peers:order("drop", pairing, { name = "dropped", abort = abort })
          local events = {}
          pair.wait_for(function()
            if #events == 0 then events = caller:get("/events").body end
            return #events > 0
          end)
          assert.same({ "items closed" }, events)
        end)
      end
    end)
  end

  it("of answers to a peer whose socket is full is no reason to give the connection up", function()
    local own, peers = waiting.serve(), crowd.start()
    local proxy = cut_proxy.new(own.port)
    local gzip = crowd.pairings[1]
    peers:order("open", gzip, { port = proxy.port, name = "asker" })
    proxy:hold(true)
    local caller = assert(pair.dial(own))
    for _ = 1, 40 do
      peers:order("ask_on", gzip, { name = "asker", each = 4, resource = "/items?n=1&bytes=4000" })
      assert.equal("hello", caller:get("/hello").body) -- so that the server has taken a turn
    end
    proxy:hold(false)
    assert.same({ asked = 160, answered = 160 }, peers:order("answers", gzip, { name = "asker" }))
    proxy:close()
  end)

  it("of our client, read slowly, delays only itself and arrives in order", function()
    local own = waiting.serve()
    local caller = assert(pair.dial(own))
    local seen, calls = 0, 0
    waiting.together(2, function(i)
      if i == 1 then
        for item, problem in caller:stream("GET", "/items?n=400&bytes=20000") do
          seen = seen + 1
          assert.equal(seen, assert(item, problem).seq)
          if seen % 40 == 0 then korv.sleep(0.02) end
        end
      else
        while seen < 400 do
          assert.equal("hello", caller:get("/hello").body)
          calls = calls + 1
        end
      end
    end, 20)
    assert.equal(400, seen)
    assert.is_true(calls > 10, calls .. " calls beside it")
  end)
end)
