--- The examples in scripts/endpoints do what they say.

local korv = require "korv"
local support = require "spec.support"

describe("the examples", function()
  local client

  setup(function()
    local server = support.serve("scripts/endpoints")
    client = assert(korv.client {
      host = "127.0.0.1", port = server.port, client_keys = { support.key "client" }, known_hosts = support.known_hosts(server, "examples"),
    })
  end)

  teardown(function()
    client:close()
    support.finish()
  end)

  local function get(resource)
    local response = assert(client:get(resource))
    return response.code, response.body
  end

  it("say hello and echo", function()
    assert.same({ 200, { msg = "Hello World!" } }, { get "/hello" })
    assert.equal("back", assert(client:update("/echo", "back")).body)
  end)

  it("keep users", function()
    assert.equal(201, assert(client:store("/users/ann", { age = 7 })).code)
    assert.equal(200, assert(client:store("/users/ann", { age = 8 })).code)
    assert.same({ age = 8, town = "Oslo" }, assert(client:update("/users/ann", { town = "Oslo" })).body)
    assert.same({ 200, korv.array { "ann" } }, { get "/users" })
    assert.equal(204, assert(client:delete("/users/ann")).code)
    assert.equal(404, (get "/users/ann"))
    assert.equal(400, assert(client:store("/users/ann", "no object")).code)
  end)

  it("wait on a timer, run a program, read a file, resolve a name", function()
    assert.same({ 200, { waited = 0.01 } }, { get "/wait/0.01" })
    assert.equal(400, (get "/wait/long"))
    assert.equal(200, (get "/host/timer/10"))
    local code, load = get "/host/load"
    assert.same({ 200, 3 }, { code, #load })
    local status, uptime = get "/host/uptime"
    assert.equal(200, status)
    assert.matches("load average", uptime.uptime)
    assert.same({ 200, korv.array { "127.0.0.1" } }, { get "/host/address/127.0.0.1" })
    assert.equal(502, (get "/host/address/no.such.name.invalid"))
  end)
end)
