--- GET /korv/health and GET /korv/metrics of one process: what is counted is exact.

local korv = require "korv"
local metered = require "spec.metered"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local asker_of, codes, find, serve = metered.asker_of, metered.codes, metered.find, metered.serve

describe("metrics", function()
  setup(pair.begin)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  describe("count", function()
    local server, asker
    before_each(function()
      server = serve(function(app)
        app:get("/hello", function() return 200, "hello" end)
        app:get("/code/:n", function(request) return tonumber(request.params.n), "x" end)
        app:get("/fail", function() error "broken" end)
        app:get("/abort", function() korv.abort(409) end)
        app:get("/nothing", function() end)
        app:get("/unsendable", function() return 200, print end)
        app:get("/sleep/:s", function(request)
          korv.sleep(tonumber(request.params.s))
          return 200
        end)
        app:get("/stream", function(request)
          for i = 1, 3 do request:send(i) end
        end)
        app:store("/echo", function(request) return 201, request.body end)
      end, { max_in_flight = 3 })
      asker = asker_of(server)
    end)

    it("each answer once, by endpoint and code", function()
      for _ = 1, 3 do asker:ask("GET", "/hello") end
      asker:ask("GET", "/hello?with=query")
      for _, code in ipairs { 201, 404, 404, 503 } do asker:ask("GET", "/code/" .. code) end
      asker:ask("STORE", "/echo", '"body":1')
      asker:ask("GET", "/fail")
      asker:ask("GET", "/abort")
      asker:ask("GET", "/nothing")
      asker:ask("GET", "/unsendable")
      local all = asker:metrics()
      assert.same({ ["200"] = 4 }, codes(all, "GET", "/hello"))
      assert.same({ ["201"] = 1, ["404"] = 2, ["503"] = 1 }, codes(all, "GET", "/code/:n"))
      assert.same({ ["201"] = 1 }, codes(all, "STORE", "/echo"))
      assert.same({ ["500"] = 1 }, codes(all, "GET", "/fail"))
      assert.same({ ["409"] = 1 }, codes(all, "GET", "/abort"))
      assert.same({ ["500"] = 1 }, codes(all, "GET", "/nothing"))
      assert.same({ ["500"] = 1 }, codes(all, "GET", "/unsendable"))
      assert.is_nil(codes(all, "GET", "/korv/metrics")) -- it has not ended
      assert.same({ ["200"] = 1 }, codes(asker:metrics(), "GET", "/korv/metrics"))
    end)

    it("codes beyond the eighth by class", function()
      for code = 200, 207 do asker:ask("GET", "/code/" .. code) end
      for _, code in ipairs { 208, 209, 404, 599, 207 } do asker:ask("GET", "/code/" .. code) end
      local counted = codes(asker:metrics(), "GET", "/code/:n")
      assert.same({ 2, 2, 1, 1 }, { counted["207"], counted["2xx"], counted["4xx"], counted["5xx"] })
      assert.is_nil(counted["404"])
    end)

    it("what has no endpoint as that", function()
      asker:ask("GET", "/nowhere")
      asker:ask("DELETE", "/hello")
      asker:ask("PATCH", "/hello")
      asker:ask("GET", "/" .. ("x"):rep(70000))
      assert.same({ ["404"] = 3, ["400"] = 1 }, codes(asker:metrics(), "*", "(no endpoint)"))
    end)

    it("what was refused, for its endpoint where it names one, without a duration", function()
      asker:ask("STORE", "/echo") -- no body
      asker:ask("GET", "/hello", '"timeout":-1')
      assert.is_true(asker.caller:message "[1]")
      assert.is_true(asker.caller:message "{")
      assert.is_true(asker.caller:message '{"id":"x","verb":"GET"}')
      local all = asker:metrics()
      assert.same({ ["400"] = 1 }, codes(all, "STORE", "/echo"))
      assert.same({ ["400"] = 1 }, codes(all, "GET", "/hello"))
      assert.same({ ["400"] = 3 }, codes(all, "*", "(no request)"))
      assert.equal(0, find(all.workers[1], "GET", "/hello").count)
    end)

    it("what was cancelled, timed out, or was too much", function()
      local first, second = asker:begin("GET", "/sleep/60"), asker:begin("GET", "/sleep/60")
      asker:begin("GET", "/sleep/60", '"timeout":0.02')
      assert.equal(503, asker:ask("GET", "/hello").code)
      assert.equal(504, asker:wait "3".code)
      assert.is_true(asker.caller:message(('{"cancel":%s}'):format(first)))
      assert.equal(499, asker:wait(first).code)
      local all = asker:metrics()
      assert.same({ ["504"] = 1, ["499"] = 1 }, codes(all, "GET", "/sleep/:s"))
      assert.same({ ["503"] = 1 }, codes(all, "GET", "/hello"))
      assert.equal(2, all.workers[1].in_flight) -- the second, and this one
      assert.is_nil(asker.answers[second])
      asker.caller:close()
      local other = asker_of(server)
      pair.wait_for(function() return codes(other:metrics(), "GET", "/sleep/:s")["499"] == 2 end)
    end)

    it("what a task asks, also where it is cancelled before it begins", function()
      local body
      pair.in_task(function()
        local own = asker_of(server)
        own:begin("GET", "/hello")
        own.caller:close()
        local other = asker_of(server)
        local id = other:begin("GET", "/hello")
        while not other.answers[id] do korv.sleep(0) end
        id = other:begin("GET", "/korv/metrics")
        while not other.answers[id] do korv.sleep(0) end
        body = other.answers[id].body
      end)
      assert.same({ ["499"] = 1, ["200"] = 1 }, codes(body, "GET", "/hello"))
    end)

    it("streams and gathered items as one request", function()
      assert.equal(200, asker:ask("GET", "/stream", '"stream":true').code)
      assert.equal(3, asker.items)
      asker:ask("GET", "/stream")
      assert.same({ ["200"] = 2 }, codes(asker:metrics(), "GET", "/stream"))
    end)

    it("in how many milliseconds it was done", function()
      asker:ask("GET", "/sleep/0.03")
      asker:ask("GET", "/hello")
      local all = asker:metrics()
      local slow, quick, bounds = find(all.workers[1], "GET", "/sleep/:s"), find(all.workers[1], "GET", "/hello"), all.duration_bounds
      assert.same({ 0.0001, 10.0, 16, 17 }, { bounds[1], bounds[16], #bounds, #slow.buckets })
      for i, bound in ipairs(bounds) do
        if bound < 0.029 then assert.equal(0, slow.buckets[i]) end
        assert.is_true(slow.buckets[i] <= slow.buckets[i + 1])
      end
      assert.same({ 1, 1, 1 }, { slow.count, slow.buckets[17], quick.count })
      assert.is_true(slow.seconds >= 0.029 and slow.seconds < 10 and quick.seconds < slow.seconds)
    end)

    it("not the time that a request was not there: a message outside the loop's turn begins when it comes", function()
      uv.sleep(50)
      asker:ask("GET", "/hello")
      assert.is_true(find(asker:metrics().workers[1], "GET", "/hello").seconds < 0.04)
    end)

    it("how late the loop is", function()
      assert.is_true(asker:metrics().workers[1].loop_lag_max < 0.4)
      uv.sleep(1000)
      pair.wait_for(function() return asker:metrics().workers[1].loop_lag_max > 0.4 end)
      pair.wait_for(function() return asker:metrics().workers[1].loop_lag < 0.4 end)
      assert.is_true(asker:metrics().workers[1].loop_lag_max > 0.4)
    end)

    it("memory, time, and the generation", function()
      local first = asker:metrics().workers[1]
      assert.equal(1, first.generation)
      assert.is_true(math.abs(first.lua_bytes - collectgarbage "count" * 1024) < 8e6)
      uv.sleep(20)
      assert.is_true(asker:metrics().workers[1].uptime >= first.uptime + 0.02)
    end)
  end)

  it("count connections and their bytes, those that are gone included", function()
    local server = serve(function(app) app:store("/echo", function(request) return 200, request.body end) end)
    local asker = asker_of(server)
    local client, body = assert(pair.dial(server)), ("x"):rep(200000)
    assert.equal(body, client:store("/echo", body).body)
    local now = asker:metrics().workers[1]
    assert.same({ 1, 1 }, { now.connections, now.connections_accepted })
    for _, bytes in ipairs { now.bytes_received, now.bytes_sent } do assert.is_true(bytes > 200000 and bytes < 230000) end
    client:close()
    pair.wait_for(function() return asker:metrics().workers[1].connections == 0 end)
    local later = asker:metrics().workers[1]
    assert.equal(1, later.connections_accepted)
    assert.is_true(later.bytes_received >= now.bytes_received and later.bytes_sent >= now.bytes_sent)
  end)

  it("count on as generations come and go, and reloads", function()
    local function script(text) return support.write("served.lua", "return function(app) " .. text .. " end") end
    local hello = [[app:get("/hello", function() return 200 end)]]
    local server = pair.new_server { watch = false }
    assert(server:load(script(hello)))
    pair.listen(server)
    local asker, done = asker_of(server), 0
    local function reload(text)
      script(text)
      local before = done
      server:reload(function() done = done + 1 end)
      pair.wait_for(function() return done > before end)
    end
    asker:ask("GET", "/hello")
    reload([[app:get("/new/:id", function() return 202 end) ]] .. hello)
    asker:ask("GET", "/hello")
    asker:ask("GET", "/new/1")
    reload "this is not Lua"
    reload [[app:get("/other", function() return 203 end)]]
    asker:ask("GET", "/hello")
    asker:ask("GET", "/other")
    local all = asker:metrics()
    assert.same({ ["200"] = 2 }, codes(all, "GET", "/hello"))
    assert.same({ ["202"] = 1 }, codes(all, "GET", "/new/:id"))
    assert.same({ ["203"] = 1 }, codes(all, "GET", "/other"))
    assert.same({ ["404"] = 1 }, codes(all, "*", "(no endpoint)"))
    assert.same({ done = 2, failed = 1 }, all.reloads)
    assert.equal(3, all.workers[1].generation)
  end)

  it("count endpoints beyond the thousandth, and those with strange names, together", function()
    local server = serve(function(app)
      for i = 1, 1200 do app:get(("/e%04d"):format(i), function() return 200 end) end
      app:get("/0\n", function() return 200 end)
      app:get("/1" .. ("x"):rep(200), function() return 200 end)
    end)
    local asker = asker_of(server)
    local resources = { "/0\n", "/1" .. ("x"):rep(200) }
    for i = 1, 1200 do resources[i + 2] = ("/e%04d"):format(i) end
    for _, resource in ipairs(resources) do assert.equal(200, asker:ask("GET", resource).code) end
    local others = codes(asker:metrics(), "*", "(other endpoints)")["200"]
    assert.is_true(others >= 202 and others <= 205, tostring(others)) -- of the thousand three may be korv's own
  end)

  it("count through another codec", function()
    local server = serve(function(app) app:get("/hello", function() return 200, "hello" end) end, { json = require "cjson" })
    local asker = asker_of(server)
    asker:ask("GET", "/hello")
    assert.equal(1, codes(asker:metrics(), "GET", "/hello")["200"])
  end)

  it("leave a resource to the app where it has it", function()
    local server = serve(function(app)
      app:get("/korv/health", function() return 299, "mine" end)
      app:get("/korv/*rest", function() return 298 end)
    end)
    local asker = asker_of(server)
    assert.same({ 299, 200, 298 },
      { asker:ask("GET", "/korv/health").code, asker:ask("GET", "/korv/metrics").code, asker:ask("GET", "/korv/x").code })
  end)

  describe("health", function()
    it("is 200 while it serves", function()
      local asker = asker_of(serve(function(app) app:get("/hello", function() return 200 end) end))
      local answer = asker:ask("GET", "/korv/health")
      assert.same({ 200, "serving", 1, 0, 1 },
        { answer.code, answer.body.status, answer.body.generation, answer.body.connections, answer.body.in_flight })
      assert.is_nil(answer.body.worker)
    end)

    it("is 503 as it drains", function()
      local go_on
      local server = serve(function(app)
        app:get("/hello", function() return 200 end)
        app:use(function(request, next)
          if request.query.wait then korv.await(function(resume) go_on = resume end) end
          return next(request)
        end)
      end)
      local asker, drained = asker_of(server), false
      local id = asker:begin("GET", "/korv/health?wait")
      pair.wait_for(function() return go_on end)
      server:drain(10, function() drained = true end)
      assert.equal(503, asker:ask("GET", "/korv/health").code)
      go_on()
      assert.same({ code = 503, body = { status = "draining" } }, asker:wait(id))
      asker.caller:close()
      pair.wait_for(function() return drained end)
    end)
  end)
end)
