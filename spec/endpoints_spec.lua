--- The examples in scripts/endpoints do what they say.

local korv = require "korv"

describe("the examples", function()
  local t

  setup(function() t = korv.test "scripts/endpoints" end)
  teardown(function() t:close() end)

  it("say hello and echo", function()
    assert.same({ 200, { msg = "Hello World!" } }, { t:get "/hello" })
    assert.same({ 200, "back" }, { t:update("/echo", "back") })
  end)

  it("keep users", function()
    assert.same({ 201, { age = 7 } }, { t:store("/users/ann", { age = 7 }) })
    assert.same({ 200, { age = 8 } }, { t:store("/users/ann", { age = 8 }) })
    assert.same({ 200, { age = 8, town = "Oslo" } }, { t:update("/users/ann", { town = "Oslo" }) })
    assert.same({ 200, korv.array { "ann" } }, { t:get "/users" })
    assert.same({ 204, korv.null }, { t:delete "/users/ann" })
    assert.same({ 404, { message = "no user ann" } }, { t:get "/users/ann" })
    assert.equal(400, (t:store("/users/ann", "no object")))
  end)

  it("wait on a timer, run a program, read a file, resolve a name", function()
    assert.same({ 200, { waited = 0.01 } }, { t:get "/wait/0.01" })
    assert.equal(400, (t:get "/wait/long"))
    assert.equal(200, (t:get "/host/timer/10"))
    local code, load = t:get "/host/load"
    assert.same({ 200, 3 }, { code, #load })
    local status, uptime = t:get "/host/uptime"
    assert.equal(200, status)
    assert.matches("load average", uptime.uptime)
    assert.same({ 200, korv.array { "127.0.0.1" } }, { t:get "/host/address/127.0.0.1" })
    assert.equal(502, (t:get "/host/address/no.such.name.invalid"))
  end)

  it("stream a count, and events to who watches, from where they left off", function()
    local ticks, counted = t:stream("GET", "/ticks?n=3&every=0.01"), {}
    for tick in ticks do counted[#counted + 1] = tick end
    assert.same({ { 1, 2, 3 }, 200 }, { counted, ticks.code })

    local watch = t:stream("GET", "/events")
    assert.same({ 201, { seq = 1 } }, { t:store("/events", "first") })
    assert.same({ seq = 1, event = "first" }, watch())
    watch:cancel()
    t:store("/events", "second")
    assert.same({ seq = 2, event = "second" }, t:stream("GET", "/events?since=1")())
    for _ = 3, 110 do t:store("/events", "more") end
    assert.same({ truncated = true, missed = 9 }, t:stream("GET", "/events?since=1")())
  end)
end)
