--- Many requests that wait, at once: nobody waits for anybody else. Counts are a twentieth of what they are with KORV_FULL=1, where they
-- are not small anyway.

local crowd = require "spec.peers.crowd"
local cut_proxy = require "spec.peers.cut_proxy"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

describe("endpoints that wait", function()
  local server, client, peers

  setup(function()
    pair.begin()
    server = waiting.serve()
    client = assert(pair.dial(server))
    peers = crowd.start()
  end)
  teardown(pair.finish)

  describe("500 requests that sleep 1 s each end in under 2 s, and every id is answered exactly once,", function()
    for _, pairing in ipairs(crowd.pairings) do
      for _, connections in ipairs { 1, 100 } do
        it(("on %d connections, over %s"):format(connections, pairing.name), function()
          local told = peers:order("ask", pairing, { port = server.port, connections = connections, each = 500 // connections,
                                                     resource = "/sleep?s=1", timeout = 30 })
          assert.same({ 500, 1, { ["200"] = 500 } }, { told.answered, told.most, told.codes })
          assert.is_true(told.seconds >= 1)
          if waiting.is_measured then assert.is_true(told.seconds < 2, told.seconds .. " s") end
        end)
      end
    end

    it("on one client of ours", function()
      local seconds = waiting.time(function()
        waiting.together(500, function() assert.equal(200, assert(client:get "/sleep?s=1").code) end)
      end)
      if waiting.is_measured then assert.is_true(seconds < 2, seconds .. " s") end
    end)
  end)

  -- A hundred callers while one endpoint computes 300 slices of a millisecond: between how many slices others were answered, how many
  -- answers there were, and of the slices that began while a call was on its way the p99.
  local function call_beside_slices()
    local answered, delays, with_others = nil, {}, 0
    client:get("/slices?n=300", nil, function(response) answered = response.body end)
    waiting.together(100, function()
      while not answered do
        korv.sleep(0.02 + 0.02 * math.random()) -- else they would queue in this process
        local delay = client:get("/tick", uv.hrtime()).body
        if delay ~= korv.null then delays[#delays + 1] = delay end
      end
    end)
    assert.equal(300, #answered)
    for _, count in ipairs(answered) do with_others = with_others + math.min(count, 1) end
    table.sort(delays)
    return with_others, #delays, delays[math.ceil(#delays * 0.99)]
  end

  it("that computes in slices and yields lets a hundred callers through: 99 of 100 within 10 slices of a millisecond", function()
    local with_others, answers, p99
    for _ = 1, 5 do -- what else this machine does can only make it worse
      with_others, answers, p99 = call_beside_slices()
      if p99 < 10 then break end
    end
    assert.is_true(with_others >= 30, ("others were answered between %d of 300 slices"):format(with_others))
    assert.is_true(answers >= 300, answers .. " answers in the time of 300 slices")
    assert.is_true(p99 < 10, p99 .. " slices")
  end)

  it("that yields with sleep(0) all the time does not keep timers and sockets from the loop", function()
    local slices
    client:get("/slices?n=200", nil, function(response) slices = response end)
    assert.equal(200, client:get("/sleep?s=0.01").code) -- a timer of the server's
    assert.is_nil(slices)
    pair.wait_for(function() return slices end)
  end)

  it("delay no call beside them on the same connection", function()
    local times = {}
    pair.in_task(function()
      for i = 1, 21 do
        client:call("GET", "/sleep?s=0.5", nil, { callback = function() end })
        korv.sleep(0.004)
        times[i] = waiting.time(function() assert.equal(200, client:get("/hello").code) end)
      end
    end)
    table.sort(times)
    if waiting.is_measured then assert.is_true(times[11] < 0.02, ("%.0f ms in the middle"):format(times[11] * 1000)) end
  end)

  describe("a client that many coroutines share", function()
    local function through_proxy(count)
      local proxy = cut_proxy.new(server.port)
      local own = assert(pair.dial({ port = proxy.port, host_key = server.host_key }))
      local before_up, before_down = proxy.last.up_packets, proxy.last.down_packets
      waiting.together(count, function(i) assert.equal(i, assert(own:store("/echo", i)).body) end)
      local up, down = proxy.last.up_packets - before_up, proxy.last.down_packets - before_down
      own:close()
      proxy:close()
      return up, down
    end

    it("sends the calls of one turn of the loop in few SSH packets, and gets few back", function()
      local up, down = through_proxy(200)
      assert.is_true(up >= 1 and down >= 1)
      assert.is_true(up <= 10, up .. " packets for 200 calls")
      assert.is_true(down <= 10, down .. " packets for 200 answers")
    end)

    it("gives each its own answer", function()
      waiting.together(200, function(i)
        for n = 1, 3 do assert.equal(i * 10 + n, assert(client:store("/echo", i * 10 + n)).body) end
      end)
    end)
  end)

  describe("and connections that do nothing", function()
    it("cost at most 40 KB each", function()
      local count = math.max(200, waiting.scaled(1000))
      support.run { "prlimit", "--pid", tostring(uv.os_getpid()), "--nofile=" .. 8 * count .. ":" }
      local own = waiting.serve()
      local clients = {}
      for i = 1, 20 do clients[i] = assert(pair.dial(own)) end
      local before = own:rss_bytes()
      for begin = 20, 20 + count - 1, 50 do -- fewer at once than max_unauthenticated
        waiting.together(50, function(i)
          clients[begin + i] = assert(pair.dial(own))
          assert.equal(200, clients[begin + i]:get("/hello").code)
        end)
      end
      local each = (own:rss_bytes() - before) / count
      for _, one in ipairs(clients) do one:close() end
      assert.is_true(not waiting.is_measured or each <= 40 * 1024, ("%.1f KB each"):format(each / 1024))
    end)

    it("100 that never log in delay nobody, and are gone after login_timeout", function()
      local own = waiting.serve { login_timeout = 1, max_unauthenticated_per_address = 128 }
      local silent, ended = {}, 0
      for i = 1, 100 do
        silent[i] = uv.new_tcp()
        silent[i]:connect("127.0.0.1", own.port, function(problem)
          assert(not problem, problem)
          silent[i]:read_start(function(_, bytes)
            if bytes then return end
            ended = ended + 1
            silent[i]:close()
          end)
        end)
      end
      local seconds = waiting.time(function()
        local other = assert(pair.dial(own))
        assert.equal(200, other:get("/hello").code)
        assert.equal(0, ended)
        other:close()
      end)
      if waiting.is_measured then assert.is_true(seconds < 0.9, seconds .. " s") end
      local before = support.descriptors(own.pid)
      pair.wait_for(function() return ended == 100 end)
      pair.wait_for(function() return support.descriptors(own.pid) <= before - 200 end)
    end)
  end)
end)
