--- A server and a client of korv's, mostly both in this process: what the Lua modules promise to who writes either end. Who is let in and
-- what is limited is in access_spec.lua, how a message looks on the wire in protocol_spec.lua.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local VERBS = { "get", "store", "update", "delete" }
local VALGRIND = { "valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
  "--suppressions=" .. support.root .. "/spec/valgrind.supp" }

local gates = {} -- functions that let waiting endpoints go on

local function open_gates()
  local waiting = gates
  gates = {}
  for _, resume in ipairs(waiting) do resume "through" end
end

local function add_endpoints(server)
  for _, verb in ipairs(VERBS) do
    server[verb](server, "/echo", function(request)
      return 200, { verb = request.verb, body = request.body, text = korv.json.encode(request.body) }
    end)
  end
  server:get("/hello", function() return 200, { msg = "Hello World!" } end)
  server:store("/same", function(request) return 200, request.body end)
  server:get("/wait", function() return 200, korv.await(function(resume) gates[#gates + 1] = resume end) end)
  server:get("/open", function()
    local count = #gates
    open_gates()
    return 200, count
  end)
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
      local response = client:get "/error"
      assert.equal(500, response.code)
      assert.matches("pair_spec%.lua:%d+: boom", response.body.message)
      assert.matches("stack traceback:.*pair_spec%.lua", response.body.traceback)
    end)

    it("returning nothing is a 500 that says so", function()
      local response = client:get "/nothing"
      assert.equal(500, response.code)
      assert.matches("GET /nothing .*pair_spec%.lua:%d+.* returned nothing", response.body.message)
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

  describe("in the life of a connection", function()
    it("what does not listen is ECONNREFUSED", function()
      local deaf = uv.new_tcp()
      deaf:bind("127.0.0.1", 0)
      local port = deaf:getsockname().port
      local none, message, name = pair.dial { port = port, host_key = support.key "host" }
      deaf:close()
      assert.same({ nil, "ECONNREFUSED" }, { none, name })
      assert.matches("127%.0%.0%.1 port " .. port, message)
    end)

    it("what does not answer is ETIMEDOUT, and the message says at what", function()
      local silent = uv.new_tcp()
      silent:bind("127.0.0.1", 0)
      silent:listen(1, function() end)
      local none, message, name = pair.dial({ port = silent:getsockname().port, host_key = support.key "host" }, { timeout = 0.2 })
      silent:close()
      assert.same({ nil, "ETIMEDOUT" }, { none, name })
      assert.matches("within 0%.2 s, while exchanging keys", message)
    end)

    it("what speaks no SSH is an error that says so", function()
      local web = uv.new_tcp()
      web:bind("127.0.0.1", 0)
      web:listen(1, function()
        local peer = uv.new_tcp()
        web:accept(peer)
        peer:write("HTTP/1.1 400 Bad Request\r\n\r\n", function() peer:close() end)
      end)
      local port = web:getsockname().port
      local none, message = pair.dial { port = port, host_key = support.key "host" }
      web:close()
      assert.is_nil(none)
      assert.matches("SSH with 127%.0%.0%.1 port " .. port, message)
    end)

    it("a server that dies ends its calls, and those to come", function()
      local other = support.serve "spec/data/app.lua"
      local own, ended = assert(pair.dial(other)), nil
      own:get("/slow", nil, function(...) ended = table.pack(...) end)
      other.must_end_well = nil
      other:kill()
      pair.wait_for(function() return ended end)
      assert.same({ nil, "ECONNRESET" }, { ended[1], ended[3] })
      assert.matches("^GET /slow: .", ended[2])
      local response, message, name = own:get "/hello"
      assert.same({ nil, "ECONNRESET" }, { response, name })
      assert.matches("^GET /hello: .", message)
    end)

    it("close() ends calls under way and those to come, and may be called again", function()
      local own, ended = assert(pair.dial(server)), nil
      own:get("/wait", nil, function(...) ended = table.pack(...) end)
      own:close()
      pair.wait_for(function() return ended end)
      assert.same({ nil, "ECLOSED" }, { ended[1], ended[3] })
      assert.matches("^GET /wait: the client was closed", ended[2])
      assert.equal("ECLOSED", select(3, own:get "/hello"))
      own:close()
      open_gates()
    end)

    it("a client in a <close> variable is closed", function()
      local outer
      do
        local own <close> = assert(pair.dial(server))
        outer = own
      end
      assert.equal("ECLOSED", select(3, outer:get "/hello"))
    end)

    it("uv.walk goes over all handles", function()
      local kinds = {}
      uv.walk(function(handle) kinds[type(handle)] = true end)
      assert.is_true(next(kinds) ~= nil)
      assert.equal(200, client:get("/hello").code)
    end)

    it("stop() ends every connection and lets nobody in", function()
      local own = pair.listen(add_endpoints(pair.new_server()))
      local one, ended = assert(pair.dial(own)), nil
      one:get("/wait", nil, function(...) ended = table.pack(...) end)
      assert.equal(200, one:get("/hello").code)
      own:stop()
      pair.wait_for(function() return ended end)
      assert.is_nil(ended[1])
      assert.equal("ECONNREFUSED", select(3, pair.dial(own)))
      open_gates()
    end)

    it("a second server in the process is independent of the first", function()
      local own = pair.new_server { authorized_client_keys = support.key "stranger" .. ".pub" }
      own:get("/hello", function() return 200, "the second" end)
      pair.listen(own)
      assert.equal("EAUTH", select(3, pair.dial(own)))
      local other = assert(pair.dial(own, { client_keys = { support.key "stranger" } }))
      assert.equal("the second", other:get("/hello").body)
      assert.equal("Hello World!", client:get("/hello").body.msg)
      assert.equal(404, other:get("/peer").code)
      own:stop()
      assert.equal(200, client:get("/hello").code)
    end)

    it("an option that the core refuses raises, and no socket stays bound", function()
      local other = pair.new_server { max_channels = 0 }
      local function descriptors()
        local count = 0
        for _ in assert(uv.fs_scandir_next), assert(uv.fs_scandir "/proc/self/fd") do count = count + 1 end
        return count
      end
      local before = descriptors()
      pair.must_raise("korv.server: max_channels", function() other:listen() end)
      assert.equal(before, descriptors())
    end)

    it("reads its keys again after its end, and where the core refuses new ones asks for them again", function()
      local path = support.path "host_key_of_its_own"
      local function put(name) support.write("host_key_of_its_own", support.read(support.key(name))) end
      put "host"
      assert(uv.fs_chmod(path, 384))
      local other = pair.new_server { host_keys = { path } }
      local refuses, asked = true, 0
      other.core = { set_keys = function()
        asked = asked + 1
        if refuses then return nil, "no memory for keys", "ENOMEM" end
        return true
      end, expel = function() end }
      local first = other.host_keys[1].fingerprint
      put "next_host"
      other:reload_keys()
      assert.equal(first, other.host_keys[1].fingerprint)
      refuses = false
      other:reload_keys()
      other:reload_keys()
      assert.equal(2, asked)
      assert.not_equal(first, other.host_keys[1].fingerprint)
      other.core = nil
      put "host"
      other:reload_keys()
      assert.equal(first, other.host_keys[1].fingerprint)
    end)

    it("registering after listen raises", function()
      for _, late in ipairs { function() server:get("/late", print) end, function() server:use(print) end } do
        pair.must_raise("app:%a+: the app is serving already", late)
      end
    end)

    it("errors in callbacks and spawned tasks are logged and end nothing", function()
      client:get("/hello", nil, function() error "in a callback of a call" end)
      korv.spawn(function() error "in a task" end)
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        timer:close()
        error "in a timer"
      end)
      for _, where in ipairs { "in a callback of a call", "in a task", "in a timer" } do
        pair.wait_for_log("error .*pair_spec%.lua:%d+: " .. where .. ".*stack traceback")
      end
      assert.equal(200, client:get("/hello").code)
    end)
  end)

  describe("a program ends well", function()
    local BOTH = [[
      local folder = ...
      korv.log.level "warn"
      local server = assert(korv.server { host = "127.0.0.1", port = 0, host_keys = { folder .. "/host" },
        authorized_client_keys = folder .. "/client.pub", drain = 0.2 })
      server:get("/hello", function() return 200, "hello" end)
      server:get("/wait", function() korv.sleep(100) end)
      local function connect()
        return assert(korv.client { host = "127.0.0.1", port = server.port, client_keys = { folder .. "/client" }, known_hosts = false })
      end
    ]]
    local OPEN = BOTH .. [[
      server:listen()
      local client = connect()
      client:get("/wait", nil, print)
      korv.spawn(function() client:get "/wait" end)
      korv.spawn(function() connect():close() korv.sleep(50) end)
      client:store("/hello", ("x"):rep(1 << 20), function() end)
      print(client:get("/hello").body)
    ]]

    local function run(text, before)
      support.key "client"
      support.key "host"
      local done = pair.program(text, { support.path "." }, { before = before })
      assert.same({ 0, 0, "" }, { done.code, done.signal, done.stderr })
      return done.stdout
    end

    it("having collected the clients that were dropped without close, of which nothing stays", function()
      assert.equal("true\n", run(BOTH .. [[
        server:listen()
        local function handles() -- once what can go has gone
          for _ = 1, 50 do
            collectgarbage()
            uv.run "nowait"
            uv.sleep(2)
          end
          local count = 0
          uv.walk(function() count = count + 1 end)
          return count
        end
        connect()
        local before = handles()
        for _ = 1, 5 do connect() end
        print(handles() == before)]]))
    end)

    it("with everything still open", function() assert.equal("hello\n", run(OPEN)) end)

    it("with everything still open, under valgrind", function() assert.equal("hello\n", run(OPEN, VALGRIND)) end)

    for what, last in pairs {
      ["right after close() and stop()"] = "client:close() server:stop()",
      ["while a client connects"] = "korv.spawn(connect) korv.spawn(connect) uv.run 'once'",
      ["where a key is missing"] = "assert(not korv.client { client_keys = { 'nowhere' } })",
      ["where a port is taken"] = "local own = korv.server { host = '127.0.0.1', port = server.port, host_keys = { folder .. '/host' }, "
        .. "authorized_client_keys = folder .. '/client.pub' } assert(not own:listen())",
      ["by os.exit in a task"] = "korv.spawn(function() os.exit(0) end) korv.run()",
    } do
      it(what, function() assert.equal("hello\n", run(OPEN .. last)) end)
    end

    it("from korv.run once its calls are done, though the client is open", function()
      local other = support.serve "spec/data/app.lua"
      local done = pair.program([[
        local port, key = ...
        local client = assert(korv.client { host = "127.0.0.1", port = tonumber(port), client_keys = { key }, known_hosts = false })
        client:get("/hello", nil, function(response) print(response.body.msg) end)
        korv.run()
        print "end"]], { tostring(other.port), support.key "client" })
      assert.same({ "Hello World!\nend\n", "", 0 }, { done.stdout, done.stderr, done.code })
    end)

    it("from start() at SIGTERM, with a call under way", function()
      assert.equal("true\n", run(BOTH .. [[
        korv.spawn(function()
          connect():get("/wait", nil, function() end)
          korv.sleep(0.05)
          uv.kill(uv.os_getpid(), "sigterm")
        end)
        print(server:start())]]))
    end)

    it("where the modules are loaded a second time, and both go on", function()
      assert.equal("hello\nhello\nhello\n", run(OPEN .. [[
        for name in pairs(package.loaded) do
          if name:find "^korv" then package.loaded[name] = nil end
        end
        korv = require "korv"
        collectgarbage()
        print(client:get("/hello").body)
        print(connect():get("/hello").body)]]))
    end)
  end)
end)
