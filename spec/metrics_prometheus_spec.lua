--- GET /korv/metrics?format=prometheus: Prometheus can read it, and it says the same.

local metered = require "spec.metered"
local pair = require "spec.pair"
local support = require "spec.support"

local asker_of, parse, serve, sum_of = metered.asker_of, metered.parse, metered.serve, metered.sum_of

describe("metrics", function()
  setup(pair.begin)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

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
end)
