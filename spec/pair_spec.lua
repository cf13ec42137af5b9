--- A server and a client of korv's, mostly both in this process: what the Lua modules promise to who writes either end. How a message
-- looks on the wire is in protocol_spec.lua, how bad ones are answered in bad_input_spec.lua.

local korv = require "korv"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local uv = require "luv"

local VERBS = { "get", "store", "update", "delete" }
local VALGRIND = { "valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
  "--suppressions=" .. support.root .. "/spec/valgrind.supp" }

local opened = {} -- servers and clients that are to be closed
local logged = {} -- lines

local function with(options, more)
  for name, value in pairs(more or {}) do options[name] = value end
  return options
end

local function new_server(options)
  return assert(korv.server(with({ host = "127.0.0.1", port = 0, host_keys = { support.key "host" },
    authorized_client_keys = support.authorized_keys "client" }, options)))
end

local function listen(server)
  opened[#opened + 1] = assert(server:listen())
  server.host_key = server.options.host_keys[1]
  return server
end

local function dial(server, options)
  local client, message, name = korv.client(with({ host = "127.0.0.1", port = server.port, client_keys = { support.key "client" },
    known_hosts = support.known_hosts(server, "known_" .. server.port), timeout = 10 }, options))
  opened[#opened + 1] = client
  return client, message, name
end

local function wait_for(done, what) assert(support.wait_for(done, 10), what or "it took too long") end

-- Calls a function in a coroutine of korv's, which serves others while it waits.
local function in_task(fn)
  local results
  korv.spawn(function() results = table.pack(pcall(fn)) end)
  wait_for(function() return results end)
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

-- Calls a function from a callback of luv's; returns as pcall does.
local function in_luv_callback(fn)
  local results
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    results = table.pack(pcall(fn))
  end)
  wait_for(function() return results end)
  return table.unpack(results, 1, results.n)
end

local function wait_for_log(pattern)
  wait_for(function()
    for _, line in ipairs(logged) do
      if line:find(pattern) then return true end
    end
  end, pattern .. " is not in the log:\n" .. table.concat(logged, "\n"))
end

-- Runs a Lua program of its own, which finds korv where this one did; `before` is what runs it, such as valgrind.
local function program(text, arguments, before, env)
  local argv = table.move({ "lua5.4", support.write("program.lua", 'local korv, uv = require "korv", require "luv"\n' .. text),
    table.unpack(arguments or {}) }, 1, 2 + #(arguments or {}), 1 + #(before or {}), { table.unpack(before or {}) })
  return support.run(argv, { env = with({ LUA_PATH = package.path, LUA_CPATH = package.cpath }, env), timeout = 30 })
end

local function make_key(name, ...)
  local path = support.path(name)
  assert(support.run { "ssh-keygen", "-q", "-C", name, "-f", path, ... }.code == 0)
  return path
end

local function file_mode(path) return ("%o"):format(uv.fs_stat(path).mode & 511) end

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
  server:get("/wait", function() return 200, korv.await(function(resume) gates[#gates + 1] = resume end) end)
  server:get("/open", function() return 200, #gates, open_gates() end)
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
    korv.log.sink(function(line) logged[#logged + 1] = line end)
    server = listen(add_endpoints(new_server()))
    client = assert(dial(server))
  end)

  before_each(function() logged = {} end)

  teardown(function()
    for _, one in ipairs(opened) do (one.close or one.stop)(one) end
    opened, server, client = {}, nil, nil
    support.wait_for(function() return not uv.loop_alive() end, 1)
    korv.log.sink(nil)
    support.finish()
  end)

  describe("in a call", function()
    for _, verb in ipairs(VERBS) do
      it(verb .. " waits, yields and calls back alike", function()
        local body = { list = korv.array {}, n = 7 }
        local called
        assert.equal(0, select("#", client[verb](client, "/echo", body, function(...) called = table.pack(...) end)))
        local waited = table.pack(client[verb](client, "/echo", body))
        local yielded = table.pack(in_task(function() return client[verb](client, "/echo", body) end))
        wait_for(function() return called end)
        for _, results in ipairs { waited, yielded, called } do
          assert.equal(1, results.n)
          assert.equal(200, results[1].code)
          assert.same({ verb = verb:upper(), body = { list = {}, n = 7 } }, { verb = results[1].body.verb, body = results[1].body.body })
        end
      end)
    end

    it("waits where no loop runs, for a server in another process", function()
      local other = support.serve "spec/data/app.lua"
      local response = assert(dial(other)):get "/hello"
      assert.same({ 200, "Hello World!" }, { response.code, response.body.msg })
    end)

    it("raises in a luv callback and says what to do", function()
      for _, call in ipairs { function() client:get "/hello" end, function() dial(server) end, function() korv.sleep(1) end } do
        local ok, message = in_luv_callback(call)
        assert.is_false(ok)
        assert.matches("^[^:]*pair_spec%.lua:%d+: cannot wait here: .*korv%.spawn", message)
      end
    end)

    it("raises where Lua cannot suspend, and in a coroutine that is not korv's", function()
      local in_sort, in_wrap = in_task(function()
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
      wait_for(function() return codes end)
      assert.same({ 200, 200 }, codes)
    end)

    it("lets an endpoint call another endpoint and wait for it", function()
      local front = new_server()
      front:get("/relay", function() return client:get("/hello").code, "relayed" end)
      assert.equal("relayed", assert(dial(listen(front))):get("/relay").body)
    end)

    it("carries any number at once, each answered when it is ready", function()
      local answers = 0
      for _ = 1, 50 do
        client:get("/wait", nil, function(response) answers = answers + (response.body == "through" and 1 or 0) end)
      end
      assert.equal("Hello World!", client:get("/hello").body.msg)
      assert.equal(0, answers)
      assert.equal(50, client:get("/open").body)
      wait_for(function() return answers == 50 end)
    end)

    it("ends at its timeout, and the connection goes on", function()
      local response, message, name = client:call("GET", "/wait", nil, { timeout = 0.05 })
      assert.is_nil(response)
      assert.same({ "GET /wait: no answer within 0.05 s", "ETIMEDOUT" }, { message, name })
      open_gates()
      assert.equal(200, client:get("/hello").code)
    end)

    it("ends each at its own timeout, whichever began first", function()
      local ended = {}
      for _, seconds in ipairs { 0.3, 0.05, 0.15 } do
        client:call("GET", "/wait", nil, { timeout = seconds, callback = function(_, _, name) ended[#ended + 1] = name .. seconds end })
      end
      wait_for(function() return #ended == 3 end)
      assert.same({ "ETIMEDOUT0.05", "ETIMEDOUT0.15", "ETIMEDOUT0.3" }, ended)
      open_gates()
    end)

    it("refuses a body without a JSON form, naming the path, and sends nothing", function()
      local response, message, name = client:store("/echo", { items = { { when = print } } })
      assert.is_nil(response)
      assert.matches("^STORE /echo: .*body%.items%[1%]%.when: a function has no JSON form", message)
      assert.equal("EJSON", name)
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
      it("raises, because " .. what, function()
        local ok, message = pcall(misuse)
        assert.is_false(ok)
        assert.matches("pair_spec%.lua:%d+: client:.*" .. what, message)
      end)
    end
  end)

  describe("with JSON values", function()
    for _, text in ipairs { "9007199254740993", "-9223372036854775808", "9223372036854775807", "0.1", "1.7976931348623157e+308", "2.0", "-0.0",
      "[]", "{}", "[[]]", "null", "[null]", '{"a":[]}', "true", "false", '"\\"\\\\ \\u0000 ü €"', "[1,[2.5,{}],null,false]" } do
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
      local body = ("x"):rep(8 << 20)
      local response = assert(client:store("/echo", body))
      assert.is_true(response.body.body == body)
    end)

    it("json = cjson decodes and encodes bodies in place of korv's", function()
      local cjson = require "cjson"
      local own = new_server { json = cjson }
      own:store("/type", function(request) return 200, { math.type(request.body), request.body, cjson.null } end)
      own:get("/raises", function() return 200, { [1] = 1, [100] = 1 } end)
      own = assert(dial(listen(own)))
      assert.equal('["float",5,null]', (korv.json.encode(own:store("/type", 5).body):gsub("%.0", "")))
      assert.equal(500, own:get("/raises").code)
      assert.equal(200, own:store("/type", korv.null).code)
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
        login = "somebody" }, assert(dial(server, { user = "somebody" })):get("/peer").body)
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
      local own = new_server { tracebacks = false }
      own:get("/error", function() error "a secret" end)
      local body = assert(dial(listen(own))):get("/error").body
      assert.is_nil(korv.json.encode(body):find "secret")
      wait_for_log("error .*" .. body.error_id .. ".*a secret.*stack traceback")
    end)

    it("middleware is around every endpoint, the first outermost, and may wait or answer itself", function()
      local own = new_server()
      for _, name in ipairs { "outer", "inner" } do
        own:use(function(request, next)
          if request.query.stop == name then korv.abort(403, name) end
          korv.sleep(0)
          local code, body = next(request)
          return code, name .. " " .. tostring(body)
        end)
      end
      own:get("/x", function() return 200, "x" end)
      own = assert(dial(listen(own)))
      assert.equal("outer inner x", own:get("/x").body)
      assert.same({ 403, "inner" }, { own:get("/x?stop=inner").code, own:get("/x?stop=inner").body })
      assert.same({ 404, "outer inner nil" }, { own:get("/nowhere").code, own:get("/nowhere").body })
    end)
  end)

  describe("checking the host's key", function()
    local fingerprint = function() return server.host_keys[1].fingerprint end

    it("an unknown one is refused, and the message has its fingerprint and what to do", function()
      local path = support.path "not_there_yet"
      local none, message, name = dial(server, { known_hosts = path })
      assert.is_nil(none)
      assert.equal("EHOSTKEY", name)
      for _, part in ipairs { path, fingerprint(), "accept_new" } do assert.is_truthy(message:find(part, 1, true), message) end
      assert.is_nil(uv.fs_stat(path))
    end)

    it("accept_new adds it to a file that was not there, and it is known from then on", function()
      local path = support.path "new_folder/known_hosts"
      assert(dial(server, { known_hosts = path, accept_new = true }))
      assert(dial(server, { known_hosts = path }))
      assert.matches("^%[127%.0%.0%.1%]:%d+ ssh%-ed25519 %S+\n$", support.read(path))
    end)

    it("accept_new appends to a file whose last line has no end", function()
      local path = support.write("unfinished", "# nothing yet")
      assert(dial(server, { known_hosts = path, accept_new = true }))
      assert(dial(server, { known_hosts = path }))
    end)

    it("a changed one is refused loudly, and never replaced", function()
      local other = support.read(support.key "another_host" .. ".pub"):match "^%S+ %S+"
      local line = ("[127.0.0.1]:%d %s\n"):format(server.port, other)
      local path = support.write("changed", line)
      for _, accept_new in ipairs { false, true } do
        local none, message, name = dial(server, { known_hosts = path, accept_new = accept_new })
        assert.is_nil(none)
        assert.equal("EHOSTKEYCHANGED", name)
        assert.matches("HAS CHANGED", message)
        for _, part in ipairs { path, fingerprint() } do assert.is_truthy(message:find(part, 1, true), message) end
        assert.equal(line, support.read(path))
      end
    end)

    it("known_hosts = false takes any", function()
      assert.equal(200, assert(dial(server, { known_hosts = false })):get("/hello").code)
    end)

    it("a known_hosts that cannot be read is an error that names it", function()
      local none, message = dial(server, { known_hosts = support.path "." })
      assert.is_nil(none)
      assert.is_truthy(message:find(support.path ".", 1, true), message)
    end)
  end)

  describe("logging in", function()
    it("a key that is not authorized is EAUTH, with its fingerprint and what to do", function()
      local key = support.key "stranger"
      local none, message, name = dial(server, { client_keys = { key } })
      assert.is_nil(none)
      assert.equal("EAUTH", name)
      assert.is_truthy(message:find(support.fingerprint(key), 1, true), message)
      assert.matches("authorized_keys", message)
      wait_for_log("refused the key " .. support.fingerprint(key):gsub("%p", "%%%0"))
    end)

    it("any of several keys may be the one", function()
      assert(dial(server, { client_keys = { support.key "stranger", support.key "client" } }))
    end)

    it("an empty list of keys is refused with a message that names it", function()
      local ok, none, message = pcall(dial, server, { client_keys = {} })
      assert.matches("client_keys", ok and (assert.is_nil(none) or message) or none)
    end)

    it("an encrypted key takes its passphrase, and no other", function()
      local key = make_key("encrypted", "-t", "ed25519", "-N", "sesame", "-a", "1")
      local own = listen(add_endpoints(new_server { authorized_client_keys = key .. ".pub" }))
      assert.equal(200, assert(dial(own, { client_keys = { key }, passphrase = "sesame" })):get("/hello").code)
      for _, wrong in ipairs { "Sesame", false } do
        local none, message = dial(own, { client_keys = { key }, passphrase = wrong or nil })
        assert.is_nil(none)
        assert.matches("encrypted: .*passphrase", message)
      end
    end)

    it("an encrypted host key takes its passphrase", function()
      local key = make_key("encrypted_host", "-t", "ed25519", "-N", "sesame", "-a", "1")
      assert(dial(listen(new_server { host_keys = { key }, passphrase = "sesame" })))
      local none, message = korv.server { host_keys = { key }, authorized_client_keys = support.path "authorized_keys" }
      assert.is_nil(none)
      assert.matches("encrypted_host: .*passphrase", message)
    end)

    it("without client_keys those of ~/.ssh are tried", function()
      local home = support.path "home"
      for _, kind in ipairs { "rsa", "ecdsa", "ed25519" } do
        support.run { "rm", "-rf", home }
        support.run { "mkdir", "-p", home .. "/.ssh" }
        local key = make_key("home/.ssh/id_" .. kind, "-t", kind, "-N", "")
        local own = listen(add_endpoints(new_server { authorized_client_keys = key .. ".pub" }))
        local done = program([[print(assert(korv.client { host = "127.0.0.1", port = tonumber(...), known_hosts = false }):get("/hello").code)]],
          { tostring(own.port) }, nil, { HOME = home })
        assert.same({ "200\n", "" }, { done.stdout, done.stderr })
      end
      support.run { "rm", "-r", home .. "/.ssh" }
      local done = program([[print(select(2, korv.client { host = "127.0.0.1" }))]], {}, nil, { HOME = home })
      assert.matches("no key in " .. home:gsub("%p", "%%%0") .. "/%.ssh.*client_keys", done.stdout)
      assert.same({ 0, 0 }, { done.code, done.signal })
    end)
  end)

  describe("options", function()
    for what, misuse in pairs {
      ["unknown option 'hots'"] = function() korv.client { hots = "localhost" } end,
      ["port must be a number, not a string"] = function() korv.client { port = "8022" } end,
      ["port must be an integer from 1 to 65535"] = function() korv.client { port = 65536, client_keys = { support.key "client" } } end,
      ["known_hosts must be a string or false"] = function() korv.client { known_hosts = true } end,
      ["client_keys must be a list of files"] = function() korv.client { client_keys = "client_key" } end,
      ["client_keys%[1%] must be a string"] = function() korv.client { client_keys = { {} } } end,
      ["timeout must be a positive number"] = function() korv.client { timeout = 0, client_keys = { support.key "client" } } end,
      ["options must be a table"] = function() korv.client() end,
    } do
      it("of a client: " .. what, function() assert.error_matches(misuse, "pair_spec%.lua:%d+: korv%.client: .*" .. what) end)
    end

    for what, misuse in pairs {
      ["unknown option 'host_key'"] = function() new_server { host_key = "key" } end,
      ["host_keys must be a list of files"] = function() new_server { host_keys = "key" } end,
      ["host_keys must name at least one file"] = function() new_server { host_keys = {} }:listen() end,
      ["port must be an integer from 0 to 65535"] = function() new_server { port = -1 }:listen() end,
      ["tracebacks must be a boolean, not a string"] = function() new_server { tracebacks = "no" } end,
      ["max_channels must be an integer"] = function() new_server { max_channels = 0 }:listen() end,
      ["json must have the functions encode and decode"] = function() new_server { json = {} } end,
      ["options must be a table"] = function() korv.server() end,
    } do
      it("of a server: " .. what, function() assert.error_matches(misuse, "pair_spec%.lua:%d+: korv%.server: .*" .. what) end)
    end

    it("max_packet_size, which the first korv needs, is accepted by both", function()
      local own = listen(add_endpoints(new_server { max_packet_size = 2 ^ 31 }))
      assert.equal(200, assert(dial(own, { max_packet_size = 2 ^ 31 })):get("/hello").code)
    end)
  end)

  describe("limits of the server", function()
    it("max_message_bytes: a longer one is a 413 that the client's log tells, and the connection goes on", function()
      local own = assert(dial(listen(add_endpoints(new_server { max_message_bytes = 2048 }))))
      local response, _, name = own:call("STORE", "/echo", ("x"):rep(4000), { timeout = 0.5 })
      assert.same({ nil, "ETIMEDOUT" }, { response, name })
      wait_for_log "warn .*413"
      assert.equal(200, own:get("/hello").code)
    end)

    it("max_response_bytes: a longer answer is a 500", function()
      local own = assert(dial(listen(add_endpoints(new_server { max_response_bytes = 2048 }))))
      assert.equal(500, own:store("/echo", ("x"):rep(4000)).code)
    end)

    it("max_depth: deeper nesting is a 400", function()
      local own = listen(add_endpoints(new_server { max_depth = 4 }))
      local peer = assert(raw_channel.connect(own))
      assert.equal(400, peer:open("subsystem:korv"):ask(raw_channel.text("1", "STORE", "/echo", "[[[[]]]]")).code)
    end)

    it("max_channels: one more is refused, until another is closed", function()
      local peer = assert(raw_channel.connect(listen(add_endpoints(new_server { max_channels = 2 }))))
      local first, second = peer:open "subsystem:korv", peer:open "tcpip"
      assert.is_nil((peer:try_open "subsystem:korv"))
      assert.equal(200, second:ask(raw_channel.text("1", "GET", "/hello")).code)
      first:finish()
      assert.equal(200, peer:open("subsystem:korv"):ask(raw_channel.text("1", "GET", "/hello")).code)
    end)

    it("max_connections: one more is refused, until another is closed", function()
      local own = listen(add_endpoints(new_server { max_connections = 1 }))
      local first = assert(dial(own))
      local none, message = dial(own)
      assert.is_nil(none)
      assert.matches("127%.0%.0%.1 port %d+.*closed", message)
      first:close()
      wait_for(function() return dial(own) end)
    end)

    it("login_timeout: who does not log in is put out", function()
      local own = listen(new_server { login_timeout = 0.2 })
      local tcp, ended = uv.new_tcp(), nil
      tcp:connect("127.0.0.1", own.port, function()
        tcp:read_start(function(_, data) ended = data == nil end)
      end)
      wait_for(function() return ended end)
      wait_for_log "no log%-in within 0%.2 s"
      tcp:close()
    end)

    it("max_auth_attempts: who tries more keys is put out, and told so", function()
      local own = listen(new_server { max_auth_attempts = 3 })
      local keys = {}
      for i = 1, 4 do keys[i] = support.key("stranger" .. i) end
      local none, message, name = dial(own, { client_keys = keys })
      assert.same({ nil, "EAUTH" }, { none, name })
      assert.matches("127%.0%.0%.1 port %d+.*4 keys", message)
      wait_for_log "3 attempts to log in"
    end)
  end)

  describe("in the life of a connection", function()
    it("what does not listen is ECONNREFUSED", function()
      local own = listen(new_server())
      own:stop()
      local none, message, name = dial(own)
      assert.same({ nil, "ECONNREFUSED" }, { none, name })
      assert.matches("127%.0%.0%.1 port " .. own.port, message)
    end)

    it("what does not answer is ETIMEDOUT, and the message says at what", function()
      local silent = uv.new_tcp()
      silent:bind("127.0.0.1", 0)
      silent:listen(1, function() end)
      local none, message, name = dial({ port = silent:getsockname().port, host_key = support.key "host" }, { timeout = 0.2 })
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
      local none, message = dial { port = port, host_key = support.key "host" }
      web:close()
      assert.is_nil(none)
      assert.matches("SSH with 127%.0%.0%.1 port " .. port, message)
    end)

    it("a server that dies ends its calls, and those to come", function()
      local other = support.serve "spec/data/app.lua"
      local own, ended = assert(dial(other)), nil
      own:get("/slow", nil, function(...) ended = table.pack(...) end)
      other.must_end_well = nil
      other:kill()
      wait_for(function() return ended end)
      assert.is_nil(ended[1])
      assert.matches("^GET /slow: .", ended[2])
      assert.equal("ECONNRESET", ended[3])
      local response, message, name = own:get "/hello"
      assert.same({ nil, "ECONNRESET" }, { response, name })
      assert.matches("^GET /hello: .", message)
    end)

    it("close() ends calls under way and those to come, and may be called again", function()
      local own, ended = assert(dial(server)), nil
      own:get("/wait", nil, function(...) ended = table.pack(...) end)
      own:close()
      wait_for(function() return ended end)
      assert.same({ nil, "GET /wait: the client was closed", "ECLOSED" }, { ended[1], ended[2], ended[3] })
      assert.equal("ECLOSED", select(3, own:get "/hello"))
      own:close()
      open_gates()
    end)

    it("a client in a <close> variable is closed", function()
      local outer
      do
        local own <close> = assert(dial(server))
        outer = own
      end
      assert.equal("ECLOSED", select(3, outer:get "/hello"))
    end)

    it("a client dropped without close is collected, its connection ends and nothing of it stays", function()
      local function handles()
        local count = 0
        uv.walk(function() count = count + 1 end)
        return count
      end
      local function connect_and_drop() assert(korv.client { host = "127.0.0.1", port = server.port, client_keys = { support.key "client" },
        known_hosts = false }):get "/hello" end
      local function settled(count)
        collectgarbage()
        return handles() <= count
      end
      connect_and_drop()
      uv.sleep(10)
      local count
      wait_for(function() -- until the first has gone
        collectgarbage()
        local before = count
        count = handles()
        return before == count
      end)
      for _ = 1, 5 do connect_and_drop() end
      wait_for(function() return settled(count) end)
    end)

    it("stop() ends every connection and lets nobody in", function()
      local own = listen(add_endpoints(new_server()))
      local one, ended = assert(dial(own)), nil
      one:get("/wait", nil, function(...) ended = table.pack(...) end)
      assert.equal(200, one:get("/hello").code)
      own:stop()
      wait_for(function() return ended end)
      assert.is_nil(ended[1])
      assert.equal("ECONNREFUSED", select(3, dial(own)))
      open_gates()
    end)

    it("a second server in the process is independent of the first", function()
      local own = new_server { authorized_client_keys = support.authorized_keys "stranger" }
      own:get("/hello", function() return 200, "the second" end)
      listen(own)
      assert.equal("EAUTH", select(3, dial(own)))
      local other = assert(dial(own, { client_keys = { support.key "stranger" } }))
      assert.equal("the second", other:get("/hello").body)
      assert.equal("Hello World!", client:get("/hello").body.msg)
      assert.equal(404, other:get("/peer").code)
      own:stop()
      assert.equal(200, client:get("/hello").code)
    end)

    it("registering after listen raises", function()
      for _, late in ipairs { function() server:get("/late", print) end, function() server:use(print) end } do
        assert.error_matches(late, "pair_spec%.lua:%d+: app:%a+: the app is serving already")
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
      wait_for_log "error .*pair_spec%.lua:%d+: in a callback of a call.*stack traceback"
      wait_for_log "error .*pair_spec%.lua:%d+: in a task.*stack traceback"
      wait_for_log "error .*pair_spec%.lua:%d+: in a timer.*stack traceback"
      assert.equal(200, client:get("/hello").code)
    end)

    it("a host key that is missing is made, private and never replaced", function()
      local path = support.path "made_host_key"
      local first = new_server { host_keys = { path } }.host_keys[1].fingerprint
      assert.equal("600", file_mode(path))
      assert.equal(first, support.fingerprint(path))
      assert.equal(first, new_server { host_keys = { path } }.host_keys[1].fingerprint)
    end)
  end)

  describe("a program ends well", function()
    local BOTH = [[
      local folder = ...
      local server = assert(korv.server { host = "127.0.0.1", port = 0, host_keys = { folder .. "/host" },
        authorized_client_keys = folder .. "/authorized_keys" })
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
      support.authorized_keys "client"
      support.key "host"
      local done = program(text, { support.path "." }, before)
      assert.same({ 0, 0, "" }, { done.code, done.signal, done.stderr })
      return done.stdout
    end

    it("with everything still open", function() assert.equal("hello\n", run(OPEN)) end)

    it("with everything still open, under valgrind", function() assert.equal("hello\n", run(OPEN, VALGRIND)) end)

    for what, last in pairs {
      ["right after close() and stop()"] = "client:close() server:stop()",
      ["while a client connects"] = "korv.spawn(connect) korv.spawn(connect) uv.run 'once'",
      ["where a key is missing"] = "assert(not korv.client { client_keys = { 'nowhere' } })",
      ["where a port is taken"] = "local own = korv.server { host = '127.0.0.1', port = server.port, host_keys = { folder .. '/host' }, "
        .. "authorized_client_keys = folder .. '/authorized_keys' } assert(not own:listen())",
      ["by os.exit in an endpoint's turn"] = "korv.spawn(function() os.exit(0) end) korv.run()",
    } do
      it(what, function() assert.equal("hello\n", run(OPEN .. last)) end)
    end

    it("from korv.run once its calls are done, though the client is open", function()
      local other = support.serve "spec/data/app.lua"
      local done = program([[
        local client = assert(korv.client { host = "127.0.0.1", port = tonumber((...)), client_keys = { select(2, ...) }, known_hosts = false })
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

    it("where the module is loaded a second time", function()
      assert.equal("hello\nhello\nhello\n", run(OPEN .. [[
        for name in pairs(package.loaded) do
          if name:find "^korv" then package.loaded[name] = nil end
        end
        korv = require "korv"
        collectgarbage()
        print(client:get("/hello").body)
        print(connect():get("/hello").body)
        client:close()
        collectgarbage()]]))
    end)
  end)
end)
