--- korv.test: an app that is asked in this process, without a network.

local core = require "korv.core"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local function handles()
  local count = 0
  uv.walk(function() count = count + 1 end)
  return count
end

-- Notes in a table that it was closed.
local function noting(notes, what) return setmetatable({}, { __close = function() notes[#notes + 1] = what end }) end

describe("korv.test", function()
  local opened

  setup(pair.begin)
  teardown(pair.finish)
  before_each(function() opened = {} end)
  after_each(function()
    for _, t in ipairs(opened) do t:close() end
  end)

  -- What asks an app whose endpoints `register` registers.
  local function test(register, options)
    local app = korv.app()
    register(app)
    local t = korv.test(app, options)
    opened[#opened + 1] = t
    return t
  end

  describe("asks with each verb", function()
    it("and returns the code and the body", function()
      local t = test(function(app)
        for i, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
          app:add_callback(verb, "/thing/:name", function(request)
            local body = request.body == nil and "none" or request.body
            return 200 + i, { request.verb, request.params.name, request.query.q or korv.null, body }
          end)
        end
      end)
      assert.same({ 201, { "GET", "a", "1", "none" } }, { t:get "/thing/a?q=1" })
      assert.same({ 202, { "STORE", "b", korv.null, { 1 } } }, { t:store("/thing/b", { 1 }) })
      assert.same({ 203, { "UPDATE", "c", korv.null, korv.null } }, { t:update "/thing/c" })
      assert.same({ 204, { "DELETE", "d", korv.null, "none" } }, { t:delete "/thing/d" })
      assert.same({ 201, { "GET", "e", korv.null, "x" } }, { t:call("GET", "/thing/e", "x") })
      assert.same({ 404, korv.null }, { t:get "/nothing" })
      assert.same({ 404, korv.null }, { t:call("POST", "/thing/a") })
    end)

    it("and both bodies go through JSON", function()
      local seen
      local t = test(function(app)
        app:store("/echo", function(request)
          seen = request.body
          return 200, request.body
        end)
        app:get("/function", function() return 200, { list = { 1, print } } end)
        app:get("/nothing", function() return 204 end)
      end)
      local given = { whole = 9007199254740993, float = 2.0, list = korv.array {}, none = korv.null, text = "ä\n" }
      local code, body = t:store("/echo", given)
      assert.equal(200, code)
      assert.same(given, body)
      assert.is_true(seen ~= given and body ~= seen and body ~= given)
      assert.equal("[]", korv.json.encode(body.list))
      assert.equal("float", math.type(body.float))
      assert.same({ nil, "STORE /echo: body.f: a function has no JSON form", "EJSON" }, { t:store("/echo", { f = print }) })
      assert.same({ 500, { message = "body.list[2]: a function has no JSON form" } }, { t:get "/function" })
      assert.same({ 204, korv.null }, { t:get "/nothing" })
    end)
  end)

  it("goes through middleware, around the 404 as well", function()
    local t = test(function(app)
      app:use(function(request, next)
        local code, body = next(request)
        return code, { inner = body, by = request.peer.name }
      end)
      app:get("/in", function() return 200, "in" end)
    end)
    assert.same({ 200, { inner = "in", by = "test" } }, { t:get "/in" })
    assert.same({ 404, { by = "test" } }, { t:get "/out" })
  end)

  it("answers aborts and errors as a server does", function()
    local function register(app)
      app:get("/abort", function() korv.abort(409, { message = "no" }) end)
      app:get("/error", function() error "broken" end)
      app:get("/silent", function() end)
    end
    local t = test(register)
    assert.same({ 409, { message = "no" } }, { t:get "/abort" })
    local code, body = t:get "/error"
    assert.equal(500, code)
    assert.matches("test_spec.lua:%d+: broken$", body.message)
    assert.matches("traceback.*test_spec.lua", body.traceback)
    code, body = t:get "/silent"
    assert.equal(500, code)
    assert.matches("GET /silent .*returned nothing", body.message)
    code, body = test(register, { tracebacks = false }):get "/error"
    assert.equal(500, code)
    assert.matches("^%x+$", body.error_id)
  end)

  it("takes another codec, and stops what computes without an end", function()
    local t = test(function(app)
      app:store("/echo", function(request) return 200, { #request.body, request.body } end)
      app:get("/loop", function() while true do end end)
    end, { json = require "cjson", cpu_limit = 0.05 })
    assert.same({ 200, { 2, { 1, 2 } } }, { t:store("/echo", { 1, 2 }) })
    local code, body = t:get "/loop"
    assert.equal(500, code)
    assert.matches("0.05", body.message)
  end)

  describe("ends at the earliest deadline:", function()
    local closed
    local function register(app)
      closed = {}
      app:get("/wait", function()
        local note <close> = noting(closed, "wait") -- luacheck: ignore 211
        korv.sleep(60)
      end)
      app:get("/short", { timeout = 0.02 }, function() korv.sleep(60) end)
      app:get("/left", function() return 200, core.remaining() end) -- what a client of the endpoint's has
    end

    it("the call's", function()
      local t = test(register)
      local code, body = t:get("/wait", { timeout = 0.02 })
      assert.same({ 504, "Timed out after 0.02 s", { "wait" } }, { code, body.message, closed })
    end)

    it("the endpoint's", function() assert.equal(504, (test(register):get "/short")) end)

    it("that of all requests", function() assert.equal(504, (test(register, { timeout = 0.02 }):get "/wait")) end)

    it("and it counts from the call on, though no loop has run for long", function()
      local t = test(register)
      uv.sleep(300)
      local _, left = t:get("/left", { timeout = 10 })
      assert.is_true(left > 9.85, left)
    end)
  end)

  describe("streams", function()
    local closed, sent
    local function register(app)
      closed, sent = {}, 0
      app:get("/three", function(request)
        for _, item in ipairs { 1, false, korv.null } do request:send(item) end
        korv.sleep(0.01)
        return 201, "end"
      end)
      app:get("/endless", function(request)
        local note <close> = noting(closed, "endless") -- luacheck: ignore 211
        while true do
          request:send { n = sent }
          sent = sent + 1
        end
      end)
      app:get("/ticking", function(request)
        local note <close> = noting(closed, "ticking") -- luacheck: ignore 211
        while true do
          request:send "tick"
          korv.sleep(0.01)
        end
      end)
      app:get("/breaking", function(request)
        request:send(1)
        error "broken"
      end)
      app:get("/function", function(request) request:send(print) end)
    end

    it("items as they come, and the code and the body at the end", function()
      local items, got = test(register):stream("GET", "/three"), {}
      for item in items do got[#got + 1] = item end
      assert.same({ { 1, false, korv.null }, 201, "end" }, { got, items.code, items.body })
      assert.is_nil(items())
    end)

    it("to an end that is none of success", function()
      local t = test(register)
      local items = t:stream("GET", "/breaking")
      assert.same({ 1, nil }, { items(), items() })
      assert.equal(500, items.code)
      assert.matches("broken", items.body.message)
      items = t:stream("GET", "/nowhere")
      assert.is_nil(items())
      assert.same({ 404, korv.null }, { items.code, items.body })
      items = t:stream("GET", "/function")
      assert.is_nil(items())
      assert.matches("a function has no JSON form", items.body.message)
      items = t:stream("GET", "/ticking", nil, { timeout = 0.05 })
      repeat until items() == nil
      assert.equal(504, items.code)
      assert.same({ nil, "STORE /three: body: a function has no JSON form", "EJSON" }, { t:stream("STORE", "/three", print)() })
    end)

    it("and an endpoint without a pause waits for the reader, and is cancelled when the loop is left", function()
      local t = test(register)
      local n = 0
      for item in t:stream("GET", "/endless") do
        assert.equal(n, item.n)
        n = n + 1
        if n == 1000 then break end
      end
      pair.wait_for(function() return closed[1] end)
      assert.is_true(sent < 1200, sent .. " were sent")
      local items = t:stream("GET", "/ticking")
      assert.equal("tick", items())
      items:cancel()
      assert.is_nil(items())
      pair.wait_for(function() return closed[2] end)
      assert.same({ "endless", "ticking" }, closed)
    end)

    it("gathered, where no stream was asked for", function()
      assert.same({ 201, { 1, false, korv.null, "end" } }, { test(register):get "/three" })
    end)
  end)

  describe("is asked by", function()
    local function register(app) app:get("/me", function(request) return 200, request.peer end) end

    it("a peer with all that one has", function()
      local _, peer = test(register):get "/me"
      for _, field in ipairs { "name", "fingerprint", "address", "login" } do assert.equal("string", type(peer[field]), field) end
      assert.same({}, peer.roles)
    end)

    it("whoever the options name, of the whole or of one call", function()
      local t = test(register, { peer = { name = "ann", roles = { "admin" } } })
      local _, ann = t:get "/me"
      local _, bob = t:get("/me", { peer = { name = "bob", fingerprint = "SHA256:bob" } })
      assert.same({ "ann", "SHA256:test", { "admin" } }, { ann.name, ann.fingerprint, ann.roles })
      assert.same({ "bob", "SHA256:bob", { "admin" } }, { bob.name, bob.fingerprint, bob.roles })
      local items = t:stream("GET", "/me", nil, { peer = { name = "carol" } })
      assert.is_nil(items())
      assert.equal("carol", items.body.name)
      assert.equal("ann", select(2, t:get "/me").name)
    end)
  end)

  it("waits in tasks while others go on, and several are asked at once", function()
    local function register(app)
      app:get("/slow", function()
        korv.sleep(0.05)
        return 200, "slow"
      end)
    end
    local inner = test(register)
    local outer = test(function(app)
      app:get("/ask", function() return inner:get "/slow" end)
    end)
    local order = {}
    korv.spawn(function()
      local _, body = outer:get "/ask"
      order[#order + 1] = body
    end)
    korv.spawn(function() order[#order + 1] = "fast" end)
    pair.wait_for(function() return #order == 2 end)
    assert.same({ "fast", "slow" }, order)
    assert.same({ 504 }, { (outer:get("/ask", { timeout = 0.01 })) })
    assert.same({ 200, "slow" }, { inner:get "/slow" })
    local ok, message = pair.in_luv_callback(function() inner:get "/slow" end)
    assert.is_false(ok)
    assert.matches("test_spec.lua:%d+: cannot wait here", message)
  end)

  describe("of scripts", function()
    local function load(text, ...)
      local t = korv.test(support.write("app.lua", text), ...)
      opened[#opened + 1] = t
      return t
    end

    it("has what a server gives them: modules beside, state, timers, an end", function()
      support.write("beside.lua", "return { greeting = 'hi' }")
      _G.notes_of_test = {}
      local t = load([[
        local korv, beside, notes = require "korv", require "beside", notes_of_test
        return function(app)
          korv.every(0.01, function() app.state.ticks = (app.state.ticks or 0) + 1 end)
          app:get("/hello", function() return 200, beside.greeting end)
          app:on("unload", function()
            korv.sleep(0.01)
            notes[#notes + 1] = "unloaded"
          end)
        end]])
      assert.same({ 200, "hi" }, { t:get "/hello" })
      pair.wait_for(function() return (t.app.state.ticks or 0) > 1 end)
      t:close()
      assert.same({ "unloaded" }, _G.notes_of_test)
      local ticks = t.app.state.ticks
      pair.in_task(function() korv.sleep(0.05) end)
      assert.equal(ticks, t.app.state.ticks)
      _G.notes_of_test = nil
    end)

    for what, case in pairs {
      ["has a syntax error"] = { "return function(app)\n  app:get(\nend", "app.lua:3: " },
      ["raises"] = { "local x\nreturn x.y", "app.lua:2: " },
      ["has no endpoint"] = { "return function(app) end", "no endpoint" },
      ["has a check that refuses"] = {
        "return function(app)\napp:get('/x', print) app:check(function() return nil, 'not yet' end) end", "not yet",
      },
    } do
      it("raises where one " .. what, function() pair.must_raise("korv.test: .*" .. case[2], function() load(case[1]) end) end)
    end

    it("raises where one is missing", function()
      pair.must_raise("korv.test: .*missing.lua", function() korv.test(support.path "missing.lua") end)
    end)
  end)

  describe("closed", function()
    local closed, waits
    local function register(app)
      closed, waits = {}, false
      app:get("/wait", function()
        local note <close> = noting(closed, "wait") -- luacheck: ignore 211
        waits = true
        korv.sleep(60)
      end)
      app:get("/hello", function() return 200 end)
      app:get("/endless", function(request)
        local note <close> = noting(closed, "endless") -- luacheck: ignore 211
        while true do request:send(1) end
      end)
    end

    it("leaves no handle open, and what ran is cancelled", function()
      local function round()
        local t = test(register)
        local answer
        korv.spawn(function() answer = { t:get "/wait" } end)
        local items = t:stream("GET", "/endless")
        assert.equal(1, items())
        pair.wait_for(function() return waits end)
        t:close()
        table.sort(closed)
        assert.same({ "endless", "wait" }, closed)
        repeat until items() == nil
        pair.wait_for(function() return answer end)
        assert.same({ nil, "GET /wait: the test was closed", "ECLOSED" }, answer)
      end
      round()
      local before = handles()
      for _ = 1, 5 do round() end
      assert.equal(before, handles())
    end)

    it("tells who still sends from a coroutine of its own", function()
      local told
      local t = test(function(app)
        app:get("/spawning", function(request)
          korv.spawn(function()
            repeat
              local sent, _, name = request:send(1)
              told = name
            until not sent
          end)
          korv.sleep(60)
        end)
      end)
      local items = t:stream("GET", "/spawning")
      assert.equal(1, items())
      pair.wait_for(function() return items.stream.paused end)
      t:close()
      pair.wait_for(function() return told end)
      assert.equal("ECANCELED", told)
    end)

    it("twice, in a task, in a callback, at the end of a scope", function()
      local t = test(register)
      t:close()
      t:close()
      pair.in_task(function() test(register):close() end)
      do
        local scoped <close> = test(register)
        t = scoped
      end
      assert.is_true(t.closed)
      t = test(register)
      assert.is_true(pair.in_luv_callback(function() t:close() end))
      pair.must_raise("test:get: it was closed", function() t:get "/hello" end)
    end)

    it("does not wait for ever for what the app does at its end", function()
      local t = test(function(app)
        app:get("/x", print)
        app:on("unload", function() korv.sleep(1e6) end)
      end)
      local began = uv.hrtime()
      t:close()
      assert.is_true(uv.hrtime() - began > 4e9)
    end)
  end)

  it("is what docs/endpoints.md says of it", function()
    local section = support.read(support.root .. "/docs/endpoints.md"):match "\n## Testing\n(.-)\n## "
    for name, text in section:gmatch "```lua\n%-%- (%S+)\n(.-)```" do support.write(name, text) end
    local done = support.run({ "env", "-C", support.path "", "lua5.4", "/usr/bin/busted", "users_spec.lua" },
      { env = { LUA_PATH = package.path:gsub("%./", support.root .. "/"), LUA_CPATH = package.cpath:gsub("%./", support.root .. "/") } })
    assert.equal(0, done.code, done.stdout .. done.stderr)
    assert.matches("3 successes / 0 failures / 0 errors", done.stdout)
  end)

  it("names what it was misused with", function()
    local t = test(function(app) app:get("/x", print) end)
    for pattern, fn in pairs {
      ["korv.test: name scripts or folders, or give an app"] = function() korv.test() end,
      ["korv.test: give paths, or one app, and options last %(a number"] = function() korv.test("a.lua", 5) end,
      ["korv.test: give paths, or one app, and options last %(a string"] = function() korv.test(korv.app(), "a.lua") end,
      ["korv.test: unknown option 'peers'"] = function() korv.test(korv.app(), { peers = {} }) end,
      ["korv.test: peer: unknown option 'nmae'"] = function() korv.test(korv.app(), { peer = { nmae = "ann" } }) end,
      ["korv.test: cpu_limit must be a number of seconds from 0 on, not %-?nan"] = function()
        korv.test(korv.app(), { cpu_limit = -(0 / 0) })
      end,
      ["korv.test: timeout must be"] = function() korv.test(korv.app(), { timeout = -1 }) end,
      ["call it with a colon: t:get"] = function() t.get "/x" end,
      ["test:get: the resource must be a string"] = function() t:get() end,
      ["test:call: the verb must be a string"] = function() t:call(nil, "/x") end,
      ["test:get: unknown option 'a'"] = function() t:get("/x", { a = 1 }) end,
      ["test:store: peer: unknown option 'nmae'"] = function() t:store("/x", 1, { peer = { nmae = "ann" } }) end,
      ["test:stream: timeout must be a positive"] = function() t:stream("GET", "/x", nil, { timeout = 0 }) end,
    } do
      pair.must_raise(pattern, fn)
    end
  end)
end)
