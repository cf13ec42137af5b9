--- A server and a client of korv's, mostly both in this process: what the Lua modules promise of a call and of a request to who writes
-- either end. Connections' lives are in pair_life_spec.lua, programs' ends in pair_program_spec.lua, who is let in and what is limited is
-- in access_spec.lua, how a message looks on the wire in protocol_spec.lua.

local gates = require "spec.gates"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local VERBS = { "get", "store", "update", "delete" }

local function add_endpoints(server)
  for _, verb in ipairs(VERBS) do
    server[verb](server, "/echo", function(request)
      return 200, { verb = request.verb, body = request.body, text = korv.json.encode(request.body) }
    end)
  end
  server:get("/hello", function() return 200, { msg = "Hello World!" } end)
  server:store("/same", function(request) return 200, request.body end)
  server:get("/wait", function() return 200, gates.wait() end)
  server:get("/open", function() return 200, gates.open() end)
  server:get("/users/:name/files/*path", function(request) return 200, { params = request.params, query = request.query } end)
  server:get("/plain", function(request) return 200, { params = request.params, query = request.query } end)
  server:get("/peer", function(request) return 200, request.peer end)
  server:get("/type", function(request) return 200, request.body == korv.null and "null" or type(request.body) end)
  server:get("/error", function() error "boom" end)
  server:get("/nothing", function() end)
  server:get("/abort", function()
    local function deep() korv.abort(418, { reason = "teapot" }) end
    deep()
  end)
  return server
end

describe("a server and a client", function()
  local server, client

  setup(function()
    pair.begin()
    server = pair.listen(add_endpoints(pair.new_server()))
    client = assert(pair.dial(server))
  end)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  describe("in a call", function()
    for _, verb in ipairs(VERBS) do
      it(verb .. " waits, yields and calls back alike", function()
        local body = { list = korv.array {}, n = 7 }
        local called
        client[verb](client, "/echo", body, function(...) called = table.pack(...) end)
        assert.is_nil(called)
        local waited = table.pack(client[verb](client, "/echo", body))
        local yielded = table.pack(pair.in_task(function() return client[verb](client, "/echo", body) end))
        pair.wait_for(function() return called end)
        for _, results in ipairs { waited, yielded, called } do
          assert.same({ 1, 200, verb:upper() }, { results.n, results[1].code, results[1].body.verb })
          assert.same({ list = {}, n = 7 }, results[1].body.body)
        end
      end)
    end

    it("waits where no loop runs, for a server in another process", function()
      local other = support.serve "spec/data/app.lua"
      local response = assert(pair.dial(other)):get "/hello"
      assert.same({ 200, "Hello World!" }, { response.code, response.body.msg })
    end)

    it("raises in a luv callback and says what to do", function()
      for _, call in ipairs { function() client:get "/hello" end, function() pair.dial(server) end, function() korv.sleep(1) end } do
        local ok, message = pair.in_luv_callback(call)
        assert.is_false(ok)
        assert.matches("^[^:]*%.lua:%d+: cannot wait here: .*korv%.spawn", message)
      end
    end)

    it("raises where Lua cannot suspend, and in a coroutine that is not korv's", function()
      local in_sort, in_wrap = pair.in_task(function()
        local _, sort = pcall(table.sort, { 1, 2, 3 }, function() client:get "/hello" end)
        local _, wrap = coroutine.wrap(function() return pcall(client.get, client, "/hello") end)()
        return sort, wrap
      end)
      assert.matches("cannot wait here: .*table%.sort.*before or after", in_sort)
      assert.matches("cannot wait here: .*korv%.spawn", in_wrap)
    end)

    it("lets a callback make further calls and wait for them", function()
      local codes
      client:get("/hello", nil, function(first) codes = { first.code, client:get("/hello").code } end)
      pair.wait_for(function() return codes end)
      assert.same({ 200, 200 }, codes)
    end)

    it("lets an endpoint call another endpoint and wait for it", function()
      local front = pair.new_server()
      front:get("/relay", function() return client:get("/hello").code, "relayed" end)
      assert.equal("relayed", assert(pair.dial(pair.listen(front))):get("/relay").body)
    end)

    it("carries any number at once, each answered when it is ready", function()
      local answers = 0
      for _ = 1, 50 do
        client:get("/wait", nil, function(response) answers = answers + (response.body == "through" and 1 or 0) end)
      end
      assert.equal("Hello World!", client:get("/hello").body.msg)
      assert.equal(0, answers)
      assert.equal(50, client:get("/open").body)
      pair.wait_for(function() return answers == 50 end)
    end)

    it("ends at its timeout where the server is silent, whichever began first, and the connection goes on", function()
      local other = support.serve "spec/data/app.lua"
      local own, ended = assert(pair.dial(other)), {}
      uv.kill(other.pid, "sigstop")
      for _, seconds in ipairs { 0.4, 0.05, 0.2 } do
        own:call("GET", "/hello", nil, { timeout = seconds, callback = function(_, _, name) ended[#ended + 1] = name .. seconds end })
      end
      local response, message, name = own:call("GET", "/hello", nil, { timeout = 0.3 })
      assert.same({ nil, "GET /hello: no answer within 0.3 s", "ETIMEDOUT" }, { response, message, name })
      pair.wait_for(function() return #ended == 3 end)
      assert.same({ "ETIMEDOUT0.05", "ETIMEDOUT0.2", "ETIMEDOUT0.4" }, ended)
      uv.kill(other.pid, "sigcont")
      assert.equal(200, own:get("/hello").code)
    end)

    it("refuses a body without a JSON form, naming the path, and sends nothing", function()
      local response, message, name = client:store("/echo", { items = { { when = print } } })
      assert.same({ nil, "EJSON" }, { response, name })
      assert.matches("^STORE /echo: .*body%.items%[1%]%.when: a function has no JSON form", message)
      assert.equal(200, client:get("/hello").code)
    end)

    for what, misuse in pairs {
      ["verb must be a string"] = function() client:call(1, "/hello") end,
      ["resource must be a string"] = function() client:get() end,
      ["callback must be a function"] = function() client:get("/hello", nil, "callback") end,
      ["timeout must be a positive number"] = function() client:call("GET", "/hello", nil, { timeout = "soon" }) end,
      ["unknown option 'timeuot'"] = function() client:call("GET", "/hello", nil, { timeuot = 1 }) end,
      ["options must be a table"] = function() client:call("GET", "/hello", nil, 3) end,
    } do
      it("raises, because " .. what, function() pair.must_raise("client:.*" .. what, misuse) end)
    end
  end)

  describe("with JSON values", function()
    for _, text in ipairs { "9007199254740993", "-9223372036854775808", "9223372036854775807", "0.1", "1.7976931348623157e+308", "2.0",
      "-0.0", "[]", "{}", "[[]]", "null", "[null]", '{"a":[]}', "true", "false", '"\\"\\\\ \\u0000 ü €"', "[1,[2.5,{}],null,false]" } do
      it(text .. " survives client, endpoint and client", function()
        local response = assert(client:store("/echo", korv.json.decode(text)))
        assert.equal(text, response.body.text)
        assert.equal(text, korv.json.encode(response.body.body))
      end)
    end

    it("a null body is korv.null, no body is nil", function()
      assert.equal("null", client:get("/type", korv.null).body)
      assert.equal("nil", client:get("/type").body)
      assert.equal(korv.null, client:get("/nowhere").body)
    end)

    it("8 MiB go both ways at once", function()
      local body, response = ("x"):rep(8 << 20), nil
      client:store("/same", body, function(...) response = ... end)
      local other = assert(client:store("/same", body))
      pair.wait_for(function() return response end)
      assert.is_true(other.body == body and response.body == body)
    end)

    it("json = cjson decodes and encodes bodies in place of korv's", function()
      local cjson = require "cjson"
      local own = pair.new_server { json = cjson }
      own:store("/type", function(request) return 200, { math.type(request.body) or "no number", request.body, cjson.null } end)
      own:get("/sparse", function() return 200, { [1] = 1, [100] = 1 } end)
      own = assert(pair.dial(pair.listen(own)))
      assert.equal('["float",5,null]', (korv.json.encode(own:store("/type", 5).body):gsub("%.0", "")))
      assert.equal('["no number",null,null]', korv.json.encode(own:store("/type", korv.null).body))
      assert.matches("sparse", own:get("/sparse").body.message)
    end)
  end)

  describe("in a request", function()
    it("params and query are there, percent-decoded, the last of a name counts", function()
      local body = client:get("/users/j%C3%B6rg/files/a/b%20c?q=x%26y&q=last&flag").body
      assert.same({ params = { name = "jörg", path = "a/b c" }, query = { q = "last", flag = "" } }, body)
      assert.same({ params = {}, query = {} }, client:get("/plain").body)
    end)

    it("the peer has fingerprint, name, roles, address and login", function()
      assert.same({ fingerprint = support.fingerprint(support.key "client"), name = "client", roles = {}, address = "127.0.0.1",
        login = "somebody" }, assert(pair.dial(server, { user = "somebody" })):get("/peer").body)
    end)

    it("abort ends the endpoint from deep within", function()
      local response = client:get "/abort"
      assert.same({ 418, { reason = "teapot" } }, { response.code, response.body })
    end)

    it("an error is a 500 with its message and traceback", function()
      local body = pair.must_fail(client, "/error", "pair_spec%.lua:%d+: boom")
      assert.matches("stack traceback:.*pair_spec%.lua", body.traceback)
    end)

    it("returning nothing is a 500 that says so", function()
      pair.must_fail(client, "/nothing", "GET /nothing .*pair_spec%.lua:%d+.* returned nothing")
    end)

    it("tracebacks = false gives an id that the log carries", function()
      local own = pair.new_server { tracebacks = false }
      own:get("/error", function() error "a secret" end)
      local body = assert(pair.dial(pair.listen(own))):get("/error").body
      assert.is_nil(korv.json.encode(body):find "secret")
      pair.wait_for_log("error .*" .. body.error_id .. ".*a secret.*stack traceback")
    end)

    it("middleware is around every endpoint, the first outermost, and may wait or answer itself", function()
      local own = pair.new_server()
      for _, name in ipairs { "outer", "inner" } do
        own:use(function(request, next)
          if request.query.stop == name then korv.abort(403, name) end
          korv.sleep(0)
          local code, body = next(request)
          return code, name .. " " .. tostring(body)
        end)
      end
      own:get("/x", function() return 200, "x" end)
      own = assert(pair.dial(pair.listen(own)))
      assert.equal("outer inner x", own:get("/x").body)
      assert.same({ 403, "inner" }, { own:get("/x?stop=inner").code, own:get("/x?stop=inner").body })
      assert.same({ 404, "outer inner nil" }, { own:get("/nowhere").code, own:get("/nowhere").body })
    end)
  end)
end)
