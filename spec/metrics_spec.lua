--- GET /korv/health and GET /korv/metrics: what is counted is exact, of one process and of several, and Prometheus can read it.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

-- In this process ----------------------------------------------------------------------------------------------------------------------

local Asker = {}
Asker.__index = Asker

-- Speaks messages without SSH, so that nothing else is counted.
local function asker_of(server)
  local self = setmetatable({ answers = {}, items = 0, last = 0 }, Asker)
  self.caller = server.core:caller({ name = "ann", fingerprint = "SHA256:x", roles = {} }, {
    answer = function(id, code, body, more)
      if more then
        self.items = self.items + 1
      else
        self.answers[id] = { code = code, body = korv.json.decode(body) }
      end
    end,
  })
  return self
end

-- Asks, and returns the id.
function Asker:begin(verb, resource, more)
  self.last = self.last + 1
  assert.is_true(self.caller:message(('{"id":%d,"verb":%s,"resource":%s%s}'):format(self.last, korv.json.encode(verb),
    korv.json.encode(resource), more and "," .. more or "")))
  return tostring(self.last)
end

function Asker:wait(id)
  pair.wait_for(function() return self.answers[id] end)
  return self.answers[id]
end

function Asker:ask(...) return self:wait(self:begin(...)) end

function Asker:metrics() return self:ask("GET", "/korv/metrics").body end

local function find(worker, verb, resource)
  for _, endpoint in ipairs(worker.endpoints) do
    if endpoint.verb == verb and endpoint.resource == resource then return endpoint end
  end
end

local function codes(all, verb, resource)
  local endpoint = find(all.workers[1], verb, resource)
  return endpoint and setmetatable(endpoint.codes, nil)
end

local function serve(register, options)
  local server = pair.new_server(options)
  register(server)
  return pair.listen(server)
end

-- Prometheus ---------------------------------------------------------------------------------------------------------------------------

local PARSE = [[
import json, sys
from prometheus_client.parser import text_string_to_metric_families
print(json.dumps({f.name: {"type": f.type, "help": f.documentation, "samples": [[s.name, s.labels, s.value] for s in f.samples]}
  for f in text_string_to_metric_families(sys.stdin.read())}))
]]

-- What Prometheus' own parser makes of a text.
local function parse(text)
  local path = support.write("parse.py", PARSE)
  local done = support.run({ support.python, path }, { stdin = text })
  assert.equal(0, done.code, done.stderr)
  return assert(korv.json.decode(done.stdout))
end

-- The sum of the samples that have these labels, and how many there are.
local function sum_of(family, name, wanted)
  local sum, count = 0, 0
  for _, sample in ipairs(family.samples) do
    local fits = sample[1] == name
    for label, value in pairs(wanted or {}) do fits = fits and sample[2][label] == value end
    if fits then sum, count = sum + sample[3], count + 1 end
  end
  return sum, count
end

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

  describe("as Prometheus reads them", function()
    local server, asker
    setup(function()
      server = serve(function(app)
        app:get('/we"ird\\path/:x', function() return 200 end)
        app:get("/hello", function() return 200 end)
      end)
      asker = asker_of(server)
      asker:ask("GET", '/we"ird\\path/1')
      for _ = 1, 5 do asker:ask("GET", "/hello") end
      asker:ask("GET", "/nowhere")
    end)

    local function text() return asker:ask("GET", "/korv/metrics?format=prometheus") end

    it("have names, types, and escaped labels, and say the same", function()
      local families = parse(text().body)
      local requests, durations = families.korv_requests, families.korv_request_duration_seconds
      assert.same({ "counter", "histogram" }, { requests.type, durations.type })
      assert.same({ 1.0, 1 }, { sum_of(requests, "korv_requests_total", { resource = '/we"ird\\path/:x', verb = "GET", code = "200" }) })
      assert.same({ 5.0, 1 }, { sum_of(requests, "korv_requests_total", { resource = "/hello" }) })
      assert.same({ 1.0, 1 }, { sum_of(requests, "korv_requests_total", { resource = "(no endpoint)", code = "404" }) })
      assert.same({ 5.0, 1 }, { sum_of(durations, "korv_request_duration_seconds_count", { resource = "/hello" }) })
      assert.same({ 5.0, 1 }, { sum_of(durations, "korv_request_duration_seconds_bucket", { resource = "/hello", le = "+Inf" }) })
      assert.equal(17, select(2, sum_of(durations, "korv_request_duration_seconds_bucket", { resource = "/hello" })))
      assert.equal(1, select(2, sum_of(durations, "korv_request_duration_seconds_bucket", { resource = "/hello", le = "0.00025" })))
      assert.same({ 1.0, 1 }, { sum_of(families.korv_generation, "korv_generation") })
      assert.is_true(sum_of(families.korv_lua_memory_bytes, "korv_lua_memory_bytes") > 100000)
      assert.equal(2, select(2, sum_of(families.korv_reloads, "korv_reloads_total")))
      assert.is_nil(families.korv_generation.samples[1][2].worker)
      for name, family in pairs(families) do assert.is_true(#family.help > 0 and family.type ~= "unknown", name) end
    end)

    it("are printed as they stand by korv call --raw", function()
      local done = support.start({ support.korv, "call", "--raw", "-i", support.key "client", "--known-hosts",
        support.known_hosts(server, "known_raw"), ("127.0.0.1:%d"):format(server.port), "GET", "/korv/metrics?format=prometheus" })
      assert.equal(0, done:wait().code, done.stderr)
      assert.matches("^# HELP korv_requests_total ", done.stdout)
      assert.equal("counter", parse(done.stdout).korv_requests.type)
    end)

    it("are that or JSON, and nothing else", function()
      assert.same({ 400, { message = "format is json or prometheus" } },
        { asker:ask("GET", "/korv/metrics?format=xml").code, asker:ask("GET", "/korv/metrics?format=xml").body })
      assert.equal("table", type(asker:ask("GET", "/korv/metrics?format=json").body))
    end)
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

  -- Processes ----------------------------------------------------------------------------------------------------------------------------

  local function start(options, ...)
    local host_key = support.key "host"
    local argv = { support.korv, "serve", "--host", "127.0.0.1", "--port", "0", "--host-key", host_key,
      "--authorized-keys", support.authorized_keys "client", ... }
    local process = support.start(argv, options)
    process.port = tonumber((process:line() or ""):match "port (%d+)") or error(process:describe "does not listen")
    process.host_key = host_key
    return process
  end

  local HELLO = [[
    return function(app)
      local korv = require "korv"
      app:get("/hello", function() return 200 end)
      app:get("/pid", function() return 200, require "luv".os_getpid() end)
      app:get("/lines", function()
        for i = 1, 300 do korv.log.warn("%s", ("x"):rep(8000)) end
        return 200
      end)
    end]]

  it("tell of lines of the log that were dropped", function()
    local ends = assert(uv.pipe({ nonblock = false }, { nonblock = false }))
    local process = start({ stderr = ends.write }, support.write("hello.lua", HELLO))
    uv.fs_close(ends.write)
    local client = assert(pair.dial(process))
    assert.equal(0, client:get("/korv/metrics").body.workers[1].log_lines_dropped)
    client:get "/lines"
    assert.is_true(client:get("/korv/metrics").body.workers[1].log_lines_dropped > 100)
    process:kill()
    uv.fs_close(ends.read)
  end)

  describe("of workers", function()
    local process, clients

    -- A client of each worker.
    local function crew(count)
      local list = {}
      pair.wait_for(function()
        local client = assert(pair.dial(process))
        local number = client:get("/korv/health").body.worker
        if list[number] then client:close() else list[number] = client end
        return #list == count
      end)
      return list
    end

    before_each(function()
      process = start({}, "--workers", "3", "--log-format", "text", "--no-watch", support.write("hello.lua", HELLO))
      clients = crew(3)
    end)
    after_each(function() process:stop() end)

    local function hellos(all)
      local sums = {}
      for i, worker in ipairs(all.workers) do
        local endpoint = find(worker, "GET", "/hello")
        sums[i] = worker.worker .. ":" .. (endpoint and endpoint.codes["200"] or 0)
      end
      return table.concat(sums, " ")
    end

    it("are those of all, each labelled, whoever is asked; and one's own are of this moment", function()
      for number, client in ipairs(clients) do
        for _ = 1, number do client:get "/hello" end
      end
      assert.matches("3:3$", hellos(clients[3]:get("/korv/metrics").body))
      for _, client in ipairs(clients) do
        pair.wait_for(function() return hellos(client:get("/korv/metrics").body) == "1:1 2:2 3:3" end)
      end
      local families = parse(clients[2]:get("/korv/metrics?format=prometheus").body)
      assert.same({ 6.0, 3 }, { sum_of(families.korv_requests, "korv_requests_total", { resource = "/hello" }) })
      assert.same({ 2.0, 1 }, { sum_of(families.korv_requests, "korv_requests_total", { resource = "/hello", worker = "2" }) })
      assert.same({ 3.0, 3 }, { sum_of(families.korv_worker_starts, "korv_worker_starts_total") })
      assert.same({ 3.0, 3 }, { sum_of(families.korv_generation, "korv_generation") })
    end)

    it("are asked for once for all who want them at once", function()
      local answers = 0
      for _ = 1, 50 do
        clients[1]:get("/korv/metrics", nil, function(response)
          if response and response.code == 200 and #response.body.workers == 3 then answers = answers + 1 end
        end)
      end
      pair.wait_for(function() return answers == 50 end)
    end)

    it("have the reloads of all, counted once", function()
      uv.kill(process.pid, "sighup")
      pair.wait_for(function() return process.stderr:find "reloaded: generation 2" end)
      support.write("hello.lua", "broken")
      uv.kill(process.pid, "sighup")
      pair.wait_for(function() return process.stderr:find "not reloaded" end)
      assert.same({ done = 1, failed = 1 }, clients[1]:get("/korv/metrics").body.reloads)
    end)

    it("begin anew with the next process in a worker's place", function()
      clients[2]:get "/hello"
      uv.kill(clients[2]:get("/pid").body, "sigkill")
      pair.wait_for(function()
        local all = clients[1]:get("/korv/metrics").body
        local second = all.workers[2]
        return second and second.worker == 2 and second.starts == 2 and not find(second, "GET", "/hello")
      end)
    end)

    it("are 503 where the supervisor does not answer", function()
      uv.kill(process.pid, "sigstop")
      local answer = clients[1]:get "/korv/metrics"
      uv.kill(process.pid, "sigcont")
      assert.same({ 503, "the supervisor has not answered within 2 s" }, { answer.code, answer.body.message })
      assert.equal(200, clients[1]:get("/korv/metrics").code)
      assert.equal(200, clients[1]:get("/korv/health").code)
    end)
  end)
end)
