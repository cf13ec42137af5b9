--- GET /korv/endpoints: what a server tells of itself, and whom.

local cjson = require "cjson"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"

describe("GET /korv/endpoints", function()
  setup(pair.begin)
  teardown(pair.finish)

  local function list(at, resource)
    local response = assert(pair.dial(at):get(resource or "/korv/endpoints"))
    return response.code, response.body
  end

  local OWN = {
    { verb = "GET", resource = "/korv/endpoints", doc = "The endpoints that you may call." },
    { verb = "GET", resource = "/korv/health", doc = "Whether this server serves." },
    { verb = "GET", resource = "/korv/metrics", doc = "What this server counts; ?format=prometheus: as a string that Prometheus reads." },
  }

  local function small(options)
    local at = pair.new_server(options)
    at:get("/users/:name/*rest", { doc = "Of a user\xff" }, function() return 200 end)
    at:store("/users", function() return 201 end)
    return at
  end

  it("lists verb, resource, doc and parameters", function()
    local code, body = list(pair.listen(small()))
    assert.equal(200, code)
    assert.same({ OWN[1], OWN[2], OWN[3], { verb = "STORE", resource = "/users" },
      { verb = "GET", resource = "/users/:name/*rest", doc = "Of a user\\xff", parameters = { "name", "rest" } } }, body)
  end)

  it("lists the roles of an endpoint that asks for some", function()
    local key = support.read(support.key "client" .. ".pub")
    local at = small { authorized_client_keys = support.write("with_roles", 'environment="KORV_ROLES=ops" ' .. key) }
    at:get("/a", { roles = { "ops", "broken\xff" } }, function() return 200 end)
    local _, body = list(pair.listen(at))
    assert.same({ { verb = "GET", resource = "/a", roles = { "ops", "broken\\xff" } }, OWN[1] }, { body[1], body[2] })
  end)

  it("is answered through middleware, and under another codec", function()
    local at, seen = small { json = cjson }, nil
    at:use(function(request, next)
      seen = request.resource
      return next(request)
    end)
    assert.equal(5, #select(2, list(pair.listen(at))))
    assert.equal("/korv/endpoints", seen)
  end)

  it("may have another name, or none", function()
    local at = pair.listen(small { introspection = "/internal/korv" })
    assert.equal("/internal/korv/endpoints", select(2, list(at, "/internal/korv/endpoints"))[1].resource)
    assert.equal(404, (list(at)))
    assert.equal(404, (list(pair.listen(small { introspection = false }))))
  end)

  it("is the app's own where it has one, and ours where that takes anything", function()
    local at = small()
    at:get("/korv/endpoints", function() return 200, "mine" end)
    assert.same({ 200, "mine" }, { list(pair.listen(at)) })
    at = small()
    at:get("/*rest", function() return 200, "anything" end)
    assert.equal(6, #select(2, list(pair.listen(at))))
  end)

  it("tells of the scripts that serve now, and does not count as one of theirs", function()
    local script = support.write("served.lua", 'return function(app) app:get("/one", function() return 200 end) end')
    local at = pair.new_server()
    assert(at:load(script))
    pair.listen(at)
    assert.equal("/one", select(2, list(at))[4].resource)
    support.write("served.lua", 'return function(app) app:get("/two", function() return 200 end) end')
    pair.in_task(function() assert(korv.await(function(resume) at:reload(resume) end)) end)
    assert.equal("/two", select(2, list(at))[4].resource)
    pair.wait_for_log "reloaded: generation 2, endpoints: 1"
    support.write("served.lua", "return function() end")
    assert.is_nil(pair.in_task(function() return korv.await(function(resume) at:reload(resume) end) end))
    assert.equal("/two", select(2, list(at))[4].resource)
  end)

  it("has a resource for a name", function()
    for _, prefix in ipairs { "korv", "/", "/korv/", "/a?b", "/:any", "/a/*b", "" } do
      pair.must_raise("korv.server: introspection must be false or the beginning of a resource", function()
        korv.server { introspection = prefix }
      end)
    end
    pair.must_raise("korv.server: introspection must be a string or false", function() korv.server { introspection = true } end)
  end)
end)
