--- Connections that come and go, half of them cut off at a random byte: nothing leaks, nothing crashes, and who stays is not disturbed.
-- A twentieth of the rounds, and all of them with KORV_FULL=1; a tenth of that under a checker (KORV_WRAP).

local crowd = require "spec.peers.crowd"
local cut_proxy = require "spec.peers.cut_proxy"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local ITEMS = "/items?n=40&bytes=500"

local function rounds(count) return math.ceil(waiting.scaled(count) / support.patience) end

-- What a process of this kind holds, once it has come to rest.
local function holdings(server, client)
  waiting.holdings(client) -- what is asked for the first time is made
  local bytes = waiting.settled(function() return waiting.holdings(client).bytes end)
  return {
    lua_bytes = bytes, handles = waiting.settled(function() return waiting.holdings(client).handles end),
    descriptors = waiting.settled(function() return support.descriptors(server.pid) end),
    rss_bytes = waiting.settled(function() return server:rss_bytes() end),
  }
end

-- Until the connections that were cut off have gone.
local function rest(server, client, like)
  support.wait_for(function()
    return support.descriptors(server.pid) <= like.descriptors and waiting.holdings(client).handles <= like.handles
  end, 5)
end

local function check_flat(before, after, rss_bytes)
  assert.equal(before.descriptors, after.descriptors, "file descriptors")
  assert.equal(before.handles, after.handles, "handles")
  local grown = after.lua_bytes - before.lua_bytes
  assert.is_true(grown < 64 * 1024, ("the server's Lua memory grew by %.0f KB"):format(grown / 1024))
  if not waiting.is_measured then return end
  grown = after.rss_bytes - before.rss_bytes
  assert.is_true(grown < rss_bytes, ("the server's memory grew by %.0f KB"):format(grown / 1024))
end

describe("connections that come and go", function()
  local server, steady, proxy

  setup(function()
    pair.begin()
    math.randomseed(tonumber(os.getenv "KORV_SEED") or os.time())
    server = waiting.serve()
    steady = assert(pair.dial(server))
    proxy = cut_proxy.new(server.port)
  end)
  teardown(function()
    proxy:close()
    pair.finish()
  end)

  -- Somebody who calls all the time, and whom nobody may disturb. Returns what stops it and tells how many calls there were.
  local function live_caller()
    local on, calls, failed = true, 0, nil
    korv.spawn(function()
      while on do
        local response, message = steady:store("/echo", calls)
        if not response or response.body ~= calls then failed = failed or message or "another's answer" end
        calls = calls + 1
        korv.sleep(0.002)
      end
    end)
    return function()
      on = false
      assert.is_nil(failed)
      assert.is_true(calls > 10)
    end
  end

  -- A visit of our client: how far it got.
  local function visit()
    local client = korv.client { host = "127.0.0.1", port = proxy.port, client_keys = { support.key "client" }, known_hosts = false,
                                 timeout = 10 }
    if not client then return "nothing" end
    local closing <close> = client -- luacheck: ignore
    local echo = client:store("/echo", ("x"):rep(500))
    if not echo then return "login" end
    for item in client:stream("GET", ITEMS) do
      if item == false then return "call" end
    end
    return "stream"
  end

  local function many_visits(count, whole, visit_once)
    local reached = {}
    for i = 1, count do
      proxy.after = i % 2 == 0 and math.random(0, whole) or nil
      proxy.reset = math.random() < 0.5
      local got = visit_once()
      assert.is_true(proxy.after ~= nil or got == "stream", "a visit that was not cut off reached: " .. got)
      reached[got] = (reached[got] or 0) + 1
    end
    proxy.after = nil
    return reached
  end

  local function leaves_nothing(count, visit_once)
    proxy.after = nil
    assert.equal("stream", visit_once())
    local whole = proxy.last.up + proxy.last.down
    for _ = 1, 3 do many_visits(math.ceil(count / 10), whole, visit_once) end -- to warm up
    local before = holdings(server, steady)
    local stop = live_caller()
    local reached = many_visits(count, whole, visit_once)
    stop()
    rest(server, steady, before)
    check_flat(before, holdings(server, steady), 1024 * 1024)
    if count < 100 then return end -- too few for every stage to be certain
    for _, stage in ipairs { "nothing", "stream" } do assert.is_truthy(reached[stage], "none was cut off before: " .. stage) end
  end

  it("leave nothing behind: our client over the subsystem with lines", function()
    local before
    local function own_handles()
      local count = 0
      collectgarbage()
      uv.walk(function() count = count + 1 end)
      return count
    end
    leaves_nothing(rounds(10000), function()
      before = before or own_handles()
      return pair.in_task(visit)
    end)
    pair.wait_for(function() return own_handles() <= before + 12 end, own_handles) -- korv's timers stay with it, for later
  end)

  for _, pairing in ipairs(crowd.pairings) do
    it("leave nothing behind: another's client over " .. pairing.name, function()
      local peers = crowd.start()
      leaves_nothing(math.max(20, rounds(2000)), function() return peers:order("visit", pairing, { port = proxy.port }).reached end)
    end)
  end

  it("leave nothing behind: those that say nothing, or no SSH", function()
    local function touch(bytes)
      local tcp, over = uv.new_tcp(), nil
      tcp:connect("127.0.0.1", server.port, function()
        if bytes then tcp:write(bytes) end
        tcp:close(function() over = true end)
      end)
      pair.wait_for(function() return over end)
    end
    local function touch_all(count)
      for _ = 1, count do
        touch(nil)
        touch "SSH-2.0-x\r\n"
        touch(("\0"):rep(100))
        touch "SSH-2.0-x\r\n\0\0\0\20\6\20garbage garbage garbage"
      end
    end
    touch_all(rounds(500))
    local before = holdings(server, steady)
    local stop = live_caller()
    touch_all(rounds(2000))
    pair.in_task(function() korv.sleep(0.1) end)
    stop()
    rest(server, steady, before)
    check_flat(before, holdings(server, steady), 1024 * 1024)
  end)

  it("leave nothing behind: streams that are left and calls that are given up", function()
    local function leave(client)
      for item in client:stream("GET", "/items?bytes=2000") do
        if item.seq == 3 then break end
      end
      client:call("GET", "/sleep?s=60", nil, { callback = function() end }):cancel()
      client:call("GET", "/sleep?s=60", nil, { timeout = 0.001 })
    end
    local client = assert(pair.dial(server))
    for _ = 1, rounds(1000) do leave(client) end
    local before = holdings(server, steady)
    for _ = 1, rounds(2000) do leave(client) end
    rest(server, steady, before)
    check_flat(before, holdings(server, steady), 1024 * 1024)
    client:close()
  end)

  it("leave nothing behind in a client that reconnects", function()
    local client = assert(korv.client { host = "127.0.0.1", port = proxy.port, client_keys = { support.key "client" }, known_hosts = false,
                                        reconnect = true, timeout = 10 })
    local function lua_bytes()
      collectgarbage()
      collectgarbage()
      return collectgarbage "count" * 1024 - #server.stderr -- which we keep
    end
    local function lose(count)
      for _ = 1, count do
        proxy:cut()
        assert.equal("hello", assert(client:get "/hello").body)
      end
    end
    lose(rounds(100))
    local before, before_bytes = holdings(server, steady), lua_bytes()
    lose(rounds(400))
    rest(server, steady, before)
    check_flat(before, holdings(server, steady), 1024 * 1024)
    client:close()
    local grown = lua_bytes() - before_bytes
    assert.is_true(grown < 64 * 1024, ("the client's Lua memory grew by %.0f KB"):format(grown / 1024))
  end)
end)
