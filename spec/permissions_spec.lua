--- Who may call what: roles that an endpoint asks for, and keys that are locked to some endpoints. First with an app alone, then through a
-- server's keys.

local app = require "korv.app"
local keyoptions = require "korv.keyoptions"
local pair = require "spec.pair"
local permissions = require "korv.permissions"
local support = require "spec.support"

local function lock(value) return assert(keyoptions.read({ { name = "command=", value = value } }, {})).only end

local function may_send(only, verb, resource) return permissions.unlocked(only, { verb = verb, resource = resource }) end

describe("a key with command=", function()
  for value, list in pairs {
    ["GET /status"] = {
      ["GET /status"] = true, ["GET /status?a=b"] = true, ["GET /status?"] = true, ["GET /status?x=/../admin"] = true,
      ["GET /status/"] = false, ["GET //status"] = false, ["GET /Status"] = false, ["GET /STATUS"] = false, ["GET /status/a"] = false,
      ["GET /%73tatus"] = false, ["GET /status%2f"] = false, ["GET /status%3f"] = false, ["GET /statu"] = false, ["GET /statuss"] = false,
      ["STORE /status"] = false, ["UPDATE /status"] = false, ["DELETE /status"] = false, ["get /status"] = false, ["GET status"] = false,
      ["GET /admin?/status"] = false, ["GET /admin#/status"] = false, ["GET  /status"] = false, ["GET /status\0"] = false,
      ["GET /status\n"] = false, ["GET ?/status"] = false, ["GET "] = false,
    },
    ["GET /own/*"] = {
      ["GET /own/a"] = true, ["GET /own/a/b"] = true, ["GET /own/"] = true, ["GET /own"] = false, ["GET /own/a%20b"] = true,
      ["GET /own/../admin"] = false, ["GET /own/%2e%2e/admin"] = false, ["GET /own/.%2E/admin"] = false, ["GET /own/..%2fadmin"] = false,
      ["GET /own/a/.."] = false, ["GET /own/./a"] = false, ["GET /own/%2e"] = false, ["GET /own/a..b"] = true, ["GET /own/.a"] = true,
      ["GET /own%2fa"] = false, ["GET /OWN/a"] = false, ["GET /own\\..\\a"] = false,
    },
    ["* /users/?,GET /all*"] = {
      ["GET /users/a"] = true, ["DELETE /users/a"] = true, ["GET /users/ab"] = false, ["GET /users/"] = false, ["GET /all"] = true,
      ["GET /all/users"] = true, ["STORE /all"] = false,
    },
    ["GET /*"] = { ["GET /"] = true, ["GET /a"] = true, ["GET a"] = false, ["STORE /a"] = false },
  } do
    it(value, function()
      local only = lock(value)
      for request, allowed in pairs(list) do
        local verb, resource = request:match "^(%S+) (.*)$"
        assert.equal(allowed, may_send(only, verb, resource), request)
      end
    end)
  end

  it("sends no resource that an app would not answer for its length, and takes no time over it", function()
    local only, began = lock "GET /a*a*a*a*a*b", os.clock()
    assert.is_true(may_send(only, "GET", "/" .. ("a"):rep(65530) .. "b"))
    assert.is_false(may_send(only, "GET", "/" .. ("a"):rep(65536) .. "b"))
    assert.is_false(may_send(only, "GET", "/" .. ("a"):rep(8 << 20) .. "b"))
    assert.is_true(os.clock() - began < support.patience)
  end)
end)

describe("an endpoint", function()
  local function sees(peer, verb, resource, options)
    local a = app.new()
    a:add_callback(verb, resource, function() return 200 end)
    local entry = a.routes:entries()[1]
    entry.options = options
    return permissions.may_call(peer, entry)
  end

  it("is seen by who may call it", function()
    assert.is_true(sees(nil, "GET", "/a"))
    assert.is_false(sees(nil, "GET", "/a", { roles = { "ops" } }))
    assert.is_false(sees({ roles = {} }, "GET", "/a", { roles = { "ops" } }))
    assert.is_false(sees({ roles = { "op", "OPS" } }, "GET", "/a", { roles = { "ops" } }))
    assert.is_true(sees({ roles = { "x", "ops" } }, "GET", "/a", { roles = { "dev", "ops" } }))
    assert.is_false(sees({ roles = { "ops" }, only = lock "GET /b" }, "GET", "/a", { roles = { "ops" } }))
  end)

  -- Whether some resource is the endpoint's and within the lock.
  for value, list in pairs {
    ["GET /users/ann"] = { ["/users/ann"] = true, ["/users/:name"] = true, ["/:a/:b"] = true, ["/*all"] = true, ["/users/*all"] = true,
      ["/users"] = false, ["/users/bob"] = false, ["/users/:name/mail"] = false, ["/:one"] = false, ["/users/ann/*all"] = false },
    ["GET /a*"] = { ["/a"] = true, ["/ab"] = true, ["/:x"] = true, ["/b"] = false, ["/a/:x/c"] = true, ["/b/*all"] = false },
    ["GET /a/?"] = { ["/a/b"] = true, ["/a/:x"] = true, ["/a/bc"] = false, ["/a/"] = false, ["/a/*all"] = true },
    ["GET /*/mail"] = { ["/users/:name/mail"] = true, ["/users/:name"] = true, ["/users/ann"] = false, ["/:x/mail"] = true },
  } do
    it("is seen by a key with command=\"" .. value .. '"', function()
      for resource, seen in pairs(list) do
        assert.equal(seen, sees({ roles = {}, only = lock(value) }, "GET", resource), resource)
        assert.is_false(sees({ roles = {}, only = lock(value) }, "STORE", resource))
      end
    end)
  end

  it("is not looked for long", function()
    local began = os.clock()
    local resource = "/"
    for i = 1, 20 do resource = ("%sa/:b%d/"):format(resource, i) end
    assert.is_false(sees({ roles = {}, only = lock("GET /" .. ("*a"):rep(50)) }, "GET", resource .. "c"))
    assert.is_true(os.clock() - began < support.patience)
  end)
end)

describe("roles", function()
  local calls
  local function endpoint() calls = calls + 1; return 200 end
  local function request(peer, resource) return { verb = "GET", resource = resource, peer = peer } end
  before_each(function() calls = 0 end)

  local NOBODY, OPS = { roles = {} }, { roles = { "ops" } }

  it("of an endpoint are asked of who calls it, before anything of the app's runs", function()
    local a = app.new()
    a:use(function(r, next) calls = calls + 1; return next(r) end)
    a:get("/open", endpoint)
    a:get("/closed", { roles = { "ops", "root" } }, endpoint)
    a:get("/users/:name", { roles = { "ops" }, timeout = 1 }, endpoint)
    local handle = a:handler(function() calls = calls + 1 end)
    local REFUSED = { 403, { message = "This key may not call this endpoint" } }
    for _, resource in ipairs { "/closed", "/closed?a=b", "/users/ann", "/users/%61nn" } do
      assert.same(REFUSED, { handle(request(NOBODY, resource)) })
      assert.same(REFUSED, { handle(request(nil, resource)) })
      assert.equal(0, calls)
    end
    for _, resource in ipairs { "/open", "/closed", "/closed?a", "/users/ann" } do assert.equal(200, (handle(request(OPS, resource)))) end
    assert.equal(200, (handle(request(NOBODY, "/open"))))
    assert.equal(404, (handle(request(NOBODY, "/closed/"))))
  end)

  it("of a lock come before them: a key that is locked out learns nothing of what there is", function()
    local a = app.new()
    a:use(function(r, next) calls = calls + 1; return next(r) end)
    a:get("/open", endpoint)
    local handle = a:handler()
    local locked = { roles = {}, only = lock "GET /status" }
    for _, resource in ipairs { "/open", "/nowhere", "/" .. ("x"):rep(70000) } do
      assert.equal(403, (handle(request(locked, resource))))
    end
    assert.equal(0, calls)
    assert.equal(404, (handle(request(locked, "/status"))))
  end)

  it("of app:roles hold for what is registered from there on", function()
    local a, mine = app.new(), { doc = "mine" }
    a:get("/before", mine, endpoint)
    a:roles("ops", "dev")
    a:get("/after", mine, endpoint)
    a:get("/own", { roles = { "root" } }, endpoint)
    a:get("/bare", endpoint)
    local handle = a:handler()
    local function codes(peer)
      local list = {}
      for i, resource in ipairs { "/before", "/after", "/own", "/bare" } do list[i] = (handle(request(peer, resource))) end
      return list
    end
    assert.same({ 200, 403, 403, 403 }, codes(NOBODY))
    assert.same({ 200, 200, 403, 200 }, codes(OPS))
    assert.same({ 200, 403, 200, 403 }, codes { roles = { "root" } })
    assert.same({ doc = "mine" }, mine)
  end)

  it("that are none are an error", function()
    local a = app.new()
    for _, roles in ipairs { {}, { ops = true }, { 1 }, "ops" } do
      assert.has_error(function() a:get("/x", { roles = roles }, endpoint) end)
    end
    assert.has_error(function() a:roles() end)
    assert.has_error(function() a:roles({ "ops" }) end)
    assert.has_error(function() a:roles(nil, "ops") end)
  end)
end)

describe("a server", function()
  local server

  setup(function()
    pair.begin()
    local lines = {}
    for name, options in pairs { plain = "", ops = 'environment="KORV_ROLES=ops,reader" ', locked = 'restrict,command="GET /users/ann" ',
      both = 'environment="KORV_ROLES=ops",command="GET /users/*,* /echo" ' } do
      lines[#lines + 1] = options .. support.read(support.key(name) .. ".pub")
    end
    server = pair.new_server { authorized_client_keys = support.write("roles", table.concat(lines)) }
    server:get("/peer", function(request) return 200, { name = request.peer.name, roles = request.peer.roles } end)
    server:get("/users/:name", function(request) return 200, request.params.name end)
    server:get("/ops", { roles = { "ops" } }, function() return 200 end)
    server:store("/echo", function(request) return 200, request.body end)
    pair.listen(server)
  end)
  teardown(pair.finish)

  local function dial(name) return assert(pair.dial(server, { client_keys = { support.key(name) } })) end

  local function codes(name)
    local client, list = dial(name), {}
    for i, resource in ipairs { "/peer", "/users/ann", "/users/bob", "/ops", "/nowhere" } do list[i] = client:get(resource).code end
    list[#list + 1] = client:store("/echo", 1).code
    return list
  end

  it("asks the key that logged in", function()
    assert.same({ 200, 200, 200, 403, 404, 200 }, codes "plain")
    assert.same({ 200, 200, 200, 200, 404, 200 }, codes "ops")
    assert.same({ 403, 200, 403, 403, 403, 403 }, codes "locked")
    assert.same({ 403, 200, 200, 403, 403, 200 }, codes "both")
  end)

  it("tells an endpoint the roles", function()
    assert.same({ name = "ops", roles = { "ops", "reader" } }, dial("ops"):get("/peer").body)
    assert.same({ name = "plain", roles = {} }, dial("plain"):get("/peer").body)
  end)

  it("takes no roles from what a client sends", function()
    local argv = support.ssh(server, { key = support.key "plain", "-o", "SendEnv=KORV_ROLES" }, "-s", "127.0.0.1", "korv")
    local ssh = support.run(argv, { env = { KORV_ROLES = "ops" },
      stdin = '{"id":1,"verb":"GET","resource":"/ops","peer":{"roles":["ops"]},"roles":["ops"],"only":null}\n' })
    assert.matches('"code":403', ssh.stdout)
  end)
end)
