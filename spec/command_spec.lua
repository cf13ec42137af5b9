--- The command: korv serve, call, stream and describe, with what they say and the exit status that they end with.

local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local ENDPOINTS = [[
local korv = require "korv"
return function(app)
  app:get("/hello", function() return 200, { msg = "Hello World!", list = korv.array { 1, korv.array {}, {} } } end)
  app:get("/login", function(request) return 200, request.peer.login end)
  app:get("/wait", function() korv.sleep(60) return 200 end)
  local waiting = "nobody waits"
  app:get("/waiting", function() return 200, waiting end)
  for resource, pause in pairs { ["/ticking"] = 0.01, ["/quiet"] = 60 } do
    app:get(resource, function(request)
      local ended <close> = setmetatable({}, { __close = function() waiting = "nobody waits" end })
      waiting = resource
      for i = 1, math.huge do
        request:send { i }
        korv.sleep(pause)
      end
    end)
  end
  app:get("/some", function(request)
    for i = 1, tonumber(request.query.n) do request:send(i) end
    korv.sleep(tonumber(request.query.sleep) or 0)
    return math.tointeger(tonumber(request.query.code or 200)), request.query.last
  end)
  app:get("/korv/endpoints", function()
    local of_user = { verb = "GET", resource = "/users/:näme", doc = "Tells of a\27[31m user,\nwhoever.\u{9b}1m\u{202e}" }
    local of_roles = { verb = "STORE", resource = "/y", doc = "Of ops", roles = { "ops", "on\ncall\27" } }
    return 200, { of_user, { verb = "DELETE", resource = "/x" }, of_roles, { verb = "GET", resource = "/z", roles = { "ops" } } }
  end)
  app:get("/odd/endpoints", function() return 200, { 1 } end)
  app:get("/none/endpoints", function() return 200, korv.array {} end)
  app:get("/barred/endpoints", function() return 403, { message = "not for you" } end)
  app:get("/code/:code", function(request)
    return math.tointeger(tonumber(request.params.code)), { code = request.params.code, said = request.query.said }
  end)
  for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
    app:add_callback(verb, "/echo", function(request) return 200, request.body end)
  end
end
]]

-- Without the right of root to read what nobody may.
local POWERLESS = uv.getuid() == 0 and { "setpriv", "--bounding-set", "-dac_override,-dac_read_search" } or {}

local function concat(...)
  local all = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #all + 1, all) end
  return all
end

local function folder(name)
  local path = support.path(name)
  assert(support.run({ "mkdir", "-p", path }).code == 0)
  return path
end

local function file_mode(path) return ("%o"):format(uv.fs_stat(path).mode & 511) end

local function authorized() return support.key "client" .. ".pub" end

-- `korv serve` with what is right, where the arguments do not say otherwise.
local function serve_argv(...)
  local argv, given = { support.korv, "serve", ... }, table.concat({ ... }, " ")
  for option, value in pairs { ["--host"] = "127.0.0.1", ["--port"] = "0", ["--host-key"] = support.key "host",
    ["--authorized-keys"] = authorized() } do
    if not given:find(option .. " ", 1, true) then argv = concat(argv, { option, value }) end
  end
  return argv
end

-- Waits for the line that says it is listening.
local function listening(server)
  local line = server:line() or error(server:describe "said nothing")
  server.port = tonumber(line:match "^korv: listening on .* port (%d+), host key SHA256:%S+ %(%S+%)") or error(line)
  server.host_key, server.must_end_well, server.said = support.key "host", true, line
  return server
end

local function serve(...) return listening(support.start(serve_argv(...))) end

-- One line on stderr that has these parts, nothing on stdout, and the status.
local function assert_complains(done, status, ...)
  assert.same({ status, 0, "" }, { done.code, done.signal, done.stdout })
  assert.matches("^korv: [^\n]+\n$", done.stderr)
  for _, part in ipairs { ... } do assert.is_truthy(done.stderr:find(part, 1, true), ("%q lacks %q"):format(done.stderr, part)) end
end

describe("korv", function()
  teardown(support.finish)

  for arguments, parts in pairs {
    ["--help"] = { "Usage: korv ", "serve", "call", "stream", "describe", "keygen", "Examples:" },
    ["serve --help"] = { "Usage: korv serve ", "--host ADDR", "--port N", "--host-key FILE", "--authorized-keys FILE", "authorized_keys" },
    ["call --help"] = { "Usage: korv call ", "-i KEY", "--known-hosts FILE", "--accept-new", "--ssh", "--timeout S", "BODY" },
    ["stream --help"] = { "Usage: korv stream ", "-i KEY", "--ssh", "--timeout S", "BODY", "| head", "Examples:" },
    ["describe --help"] = { "Usage: korv describe ", "-i KEY", "--json", "--prefix RESOURCE", "/korv", "Examples:" },
    ["keygen --help"] = { "Usage: korv keygen ", "-C TEXT", "FILE", "Examples:" },
    ["--version"] = { "korv " .. korv.version },
  } do
    it(arguments .. " tells it on stdout and ends with 0", function()
      local argv = { support.korv }
      for word in arguments:gmatch "%S+" do argv[#argv + 1] = word end
      local done = support.run(argv)
      assert.same({ 0, "" }, { done.code, done.stderr })
      for _, part in ipairs(parts) do assert.is_truthy(done.stdout:find(part, 1, true), part) end
    end)
  end

  for arguments, parts in pairs {
    ["serve --prot 1 x.lua"] = { "--prot", "did you mean '--port'? See korv serve --help" },
    ["call --acept-new h GET /"] = { "--acept-new", "did you mean '--accept-new'? See korv call --help" },
    ["sreve"] = { "sreve", "did you mean 'serve'", "serve, call, stream, describe, keygen; see korv --help" },
    [""] = { "command", "serve, call, stream, describe, keygen; see korv --help" },
    ["call localhost GET"] = { "RESOURCE", "see korv call --help" },
    ["stream localhost GET"] = { "RESOURCE", "see korv stream --help" },
    ["serve"] = { "SCRIPT", "see korv serve --help" },
    ["describe"] = { "HOST", "see korv describe --help" },
    ["describe --prefix x localhost"] = { "--prefix", "such as /korv", "see korv describe --help" },
    ["keygen a b"] = { "too many arguments", "see korv keygen --help" },
    ["serve --port http x.lua"] = { "--port", "see korv serve --help" },
    ["call --timeout soon localhost GET /"] = { "--timeout", "see korv call --help" },
  } do
    it(("refuses the arguments %q, names what is wrong and what to do"):format(arguments), function()
      local argv = { support.korv }
      for word in arguments:gmatch "%S+" do argv[#argv + 1] = word end
      assert_complains(support.run(argv), 64, table.unpack(parts))
    end)
  end
end)

describe("korv serve", function()
  local script

  setup(function() script = support.write("endpoints.lua", ENDPOINTS) end)
  teardown(support.finish)

  it("serves the default files on all interfaces, IPv4 and IPv6, and makes the host key", function()
    local home = folder "defaults"
    support.write("defaults/authorized_keys", support.read(authorized()))
    local server = support.start { "env", "-C", home, support.korv, "serve", "--port", "0", script }
    local made = home .. "/ssh_host_ed25519_key"
    assert.equal(("korv: listening on all interfaces, port %d, host key %s (ssh-ed25519)"):format(listening(server).port,
      support.fingerprint(made)), server.said)
    assert.equal("600", file_mode(made))
    for _, address in ipairs { "127.0.0.1", "[::1]" } do
      local done = support.run { support.korv, "call", "-i", support.key "client", "--known-hosts", support.path "new_hosts",
        "--accept-new", address .. ":" .. server.port, "GET", "/login" }
      assert.equal(0, done.code, done.stderr)
    end
  end)

  it("makes a missing host key where it was named, private, and never replaces it", function()
    local path = support.path "named_key"
    local first = serve("--host-key", path, script)
    assert.is_true(first:stop())
    first.must_end_well = nil
    assert.equal("600", file_mode(path))
    local text = support.read(path)
    local second = serve("--host-key", path, script)
    assert.equal(text, support.read(path))
    assert.equal(first.said:match "host key.*", second.said:match "host key.*")
  end)

  it("tells the fingerprints of several host keys, and shows a client the one that it knows", function()
    local other = support.path "ecdsa_key"
    support.run { "ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", other }
    local server = serve("--host-key", support.key "host", "--host-key", other, script)
    for _, path in ipairs { support.key "host", other } do
      assert.is_truthy(server.said:find(support.fingerprint(path), 1, true), server.said)
      server.host_key = path
      local done = support.run { support.korv, "call", "-i", support.key "client", "--known-hosts", support.known_hosts(server),
        "127.0.0.1:" .. server.port, "GET", "/hello" }
      assert.equal(0, done.code, done.stderr)
    end
  end)

  it("takes a free port for port 0", function() assert.not_equal(serve(script).port, serve(script).port) end)

  it("serves the scripts of a folder, which may require what lies beside them", function()
    folder "several/shared"
    for name, text in pairs { one = 'require "shared"', two = '"two"' } do
      support.write(("several/%s.lua"):format(name),
        ('local text = %s\nreturn function(app) app:get("/%s", function() return 200, text end) end'):format(text, name))
    end
    support.write("several/shared/init.lua", 'return "from beside"')
    support.write("several/notes.txt", "no script")
    local server = serve(support.path "several/")
    for resource, text in pairs { ["/one"] = '"from beside"\n', ["/two"] = '"two"\n' } do
      assert.equal(text, support.run { support.korv, "call", "-i", support.key "client", "--known-hosts", support.known_hosts(server),
        "127.0.0.1:" .. server.port, "GET", resource }.stdout)
    end
  end)

  for _, signal in ipairs { "sigterm", "sigint" } do
    it("ends with 0 at " .. signal .. ", though an endpoint waits and a script's own timer goes on", function()
      local timer = support.write("timer.lua", [[
        require("luv").new_timer():start(1000, 1000, function() end)
        return function() end]])
      local server = serve("--drain", "0.5", script, timer)
      local call = support.start { support.korv, "call", "-i", support.key "client", "--known-hosts", support.known_hosts(server),
        "127.0.0.1:" .. server.port, "GET", "/wait" }
      support.wait_for(function() return call:ended() end, 0.5)
      assert.is_nil(call.code, call.stderr)
      uv.kill(server.pid, signal)
      server.must_end_well = nil
      server:wait(5)
      assert.same({ 0, 0 }, { server.code, server.signal })
      assert.equal(5, call:wait(5).code) -- what was accepted is answered: 503
    end)
  end

  local function refuses(status, argv, ...) assert_complains(support.run(argv, { timeout = 5 }), status, ...) end

  describe("ends with 1 and one line that names the file and the mend, where", function()
    it("others can read the host key", function()
      local path = support.write("readable_key", support.read(support.key "host"))
      uv.fs_chmod(path, 416)
      refuses(1, serve_argv("--host-key", path, script), path, "0640", "chmod 600 " .. path)
    end)

    it("the host key cannot be read", function()
      local path = support.write("unreadable_key", support.read(support.key "host"))
      uv.fs_chmod(path, 0)
      refuses(1, concat(POWERLESS, serve_argv("--host-key", path, script)), path, "ermission denied")
    end)

    it("the host key is none, and it is left alone", function()
      local path = support.write("no_key", "not a key\n")
      uv.fs_chmod(path, 384)
      refuses(1, serve_argv("--host-key", path, script), path, "not a private key")
      assert.equal("not a key\n", support.read(path))
    end)

    it("the host key's folder is not there", function()
      local path = support.path "nowhere/key"
      refuses(1, serve_argv("--host-key", path, script), "cannot make the host key " .. path)
    end)

    it("two host keys are of one type", function()
      refuses(1, serve_argv("--host-key", support.key "host", "--host-key", support.key "stranger", script), support.key "host",
        support.key "stranger", "ssh-ed25519")
    end)

    it("the port is taken", function()
      local port = tostring(serve(script).port)
      refuses(1, serve_argv("--port", port, script), "127.0.0.1 port " .. port, "in use", "--port")
    end)

    it("the port is none", function() refuses(64, serve_argv("--port", "65536", script), "--port", "65535") end)

    it("the address is none of this machine's", function() refuses(1, serve_argv("--host", "192.0.2.1", script), "192.0.2.1") end)

    it("authorized_keys is missing", function()
      local path = support.path "missing_keys"
      refuses(1, serve_argv("--authorized-keys", path, script), path, "cat ~/.ssh/id_ed25519.pub >> " .. path)
    end)

    it("authorized_keys is empty", function()
      local path = support.write("empty_keys", "# nobody yet\n\n")
      refuses(1, serve_argv("--authorized-keys", path, script), path, "cat ~/.ssh/id_ed25519.pub >> " .. path)
    end)

    it("authorized_keys has but a broken line", function()
      local path = support.write("broken_keys", "ssh-ed25519 AAAA broken\n")
      refuses(1, serve_argv("--authorized-keys", path, script), path .. ":1: ", ".pub")
    end)

    it("authorized_keys cannot be read", function()
      local path = support.write("unreadable_keys", "")
      uv.fs_chmod(path, 0)
      refuses(1, concat(POWERLESS, serve_argv("--authorized-keys", path, script)), path, "ermission denied")
    end)

    for what, case in pairs {
      ["has a syntax error"] = { "return function(app)\n  app:get(\nend", ":3: " },
      ["raises"] = { "local x\nreturn x.y", ":2: " },
      ["requires what is not there"] = { 'require "not_there"', "not_there" },
      ["returns no function"] = { "return { get = 1 }", "return function(app)" },
      ["returns nothing"] = { "local x = 1", "return function(app)" },
      ["raises while it registers"] = { "return function(app)\n  app:gte('/x', print)\nend", ":2: " },
      ["registers a resource without its slash"] = { "return function(app)\n  app:get('x', print)\nend", ":2: " },
      ["raises a table"] = { "error { reason = 'none' }", "table" },
      ["is a program of bytes"] = { string.dump(function() end), "binary" },
    } do
      it("a script " .. what, function()
        local path = support.write("bad.lua", case[1])
        refuses(1, serve_argv(script, path), path, case[2])
      end)
    end

    it("a script is missing", function()
      local path = support.path "missing.lua"
      refuses(1, serve_argv(path), path, "No such file")
    end)

    it("a folder has no scripts", function()
      local path = folder "no_scripts"
      refuses(1, serve_argv(path), path, "*.lua")
    end)

    it("two scripts register the same", function()
      local path = support.write("again.lua", 'return function(app)\n  app:get("/hello", function() end)\nend')
      refuses(1, serve_argv(script, path), "GET /hello", script .. ":3", path .. ":2")
    end)
  end)

  it("lets the keys in that are sound where another line is broken, and says which line that is", function()
    local path = support.write("one_broken", "ssh-ed25519 AAAA broken\n" .. support.read(authorized()))
    local server = serve("--log-format", "text", "--authorized-keys", path, script)
    assert.is_truthy(server.stderr:find("warn " .. path .. ":1: ", 1, true), server.stderr)
    assert.equal(0, support.run({ support.korv, "call", "-i", support.key "client", "--known-hosts", support.known_hosts(server),
      "127.0.0.1:" .. server.port, "GET", "/hello" }).code)
  end)
end)

describe("korv call", function()
  local server

  setup(function() server = serve(support.write("endpoints.lua", ENDPOINTS)) end)
  teardown(support.finish)

  local function address() return "127.0.0.1:" .. server.port end

  -- `korv call` of the server, with the keys that are right.
  local function call(...)
    return support.run { support.korv, "call", "-i", support.key "client", "--known-hosts", support.known_hosts(server), address(), ... }
  end

  -- The last argument may be the options of support.run.
  local function call_bare(...)
    local argv = { support.korv, "call", ... }
    local options = type(argv[#argv]) == "table" and table.remove(argv) or nil
    return support.run(argv, options)
  end

  it("prints the body, compact, on stdout and nothing else", function()
    local done = call("GET", "/hello")
    assert.same({ 0, "" }, { done.code, done.stderr })
    assert.same({ msg = "Hello World!", list = { 1, {}, {} } }, korv.json.decode(done.stdout))
    assert.matches("^{[^ \n]*Hello World![^ \n]*}\n$", done.stdout)
    assert.is_truthy(done.stdout:find('"list":[1,[],{}]', 1, true), done.stdout)
  end)

  it("prints it indented on a terminal", function()
    local command = ("'%s' call -i '%s' --known-hosts '%s' %s GET /hello"):format(support.korv, support.key "client",
      support.known_hosts(server), address())
    local done = support.run { "script", "--quiet", "--return", "--command", command, "/dev/null" }
    local wanted = '{\n  "list": [\n    1,\n    [],\n    {}\n  ],\n  "msg": "Hello World!"\n}\n'
    assert.same({ 0, wanted }, { done.code, (done.stdout:gsub("\r", "")) })
  end)

  it("is not steered by a failure on a terminal", function()
    local command = ("'%s' call -i '%s' --known-hosts '%s' %s GET '/code/500?said=\u{9b}1m\u{202e}'"):format(support.korv,
      support.key "client", support.known_hosts(server), address())
    local done = support.run { "script", "--quiet", "--return", "--command", command, "/dev/null" }
    assert.equal(5, done.code)
    assert.matches('^500 {.*"said":"\\u009b1m\\u202e".*}\r\n$', done.stdout)
  end)

  for code = 200, 500, 100 do
    it(("of a %d tells it as it should"):format(code), function()
      local done = call("GET", "/code/" .. code)
      local body = ('{"code":"%d"}\n'):format(code)
      if code == 200 then
        assert.same({ 0, body, "" }, { done.code, done.stdout, done.stderr })
      else
        assert.same({ code // 100, "", code .. " " .. body }, { done.code, done.stdout, done.stderr })
      end
    end)
  end

  it("of a 404 says 404 null", function()
    local done = call("GET", "/nowhere")
    assert.same({ 4, "", "404 null\n" }, { done.code, done.stdout, done.stderr })
  end)

  local RELATIVE = "'hello' does not begin with '/': did you mean '/hello'?"
  local NO_POST = "'POST' is no verb: GET, STORE, UPDATE or DELETE; did you mean STORE?"

  for words, hint in pairs {
    ["GET hello"] = RELATIVE, ["post /hello"] = NO_POST, ["POST hello"] = NO_POST .. "; " .. RELATIVE,
    ["SEND /hello"] = "'SEND' is no verb: GET, STORE, UPDATE or DELETE",
  } do
    it(("of a 404 for %s says what is odd about it"):format(words), function()
      local verb, resource = words:match "(%S+) (%S+)"
      local done = call(verb, resource)
      assert.same({ 4, "", "404 null\nkorv: " .. hint .. "\n" }, { done.code, done.stdout, done.stderr })
    end)
  end

  it("calls what only a first korv's server knows, and finds nothing odd where that answers", function()
    local python = support.serve_python()
    local function call_python(verb, resource)
      return call_bare("-i", support.key "client", "--known-hosts", support.known_hosts(python), "127.0.0.1:" .. python.port, verb,
        resource)
    end
    local done = call_python("POST", "hello")
    assert.same({ 0, '{"msg":"Hello World!"}\n', "" }, { done.code, done.stdout, done.stderr })
    done = call_python("GET", "hello")
    assert.same({ 4, "", "404 null\nkorv: " .. RELATIVE .. "\n" }, { done.code, done.stdout, done.stderr })
  end)

  for _, body in ipairs { '{"a":[9007199254740993,0.1,null]}', '"text"', "null", "false", "[]", "-1" } do
    it("sends the BODY " .. body, function()
      local done = call("STORE", "/echo", body)
      assert.same({ 0, body .. "\n", "" }, { done.code, done.stdout, done.stderr })
    end)
  end

  it("takes a verb in small letters, and no BODY for null", function() assert.equal("null\n", call("store", "/echo").stdout) end)

  it("reads the BODY - from stdin", function()
    local done = call_bare("-i", support.key "client", "--known-hosts", support.known_hosts(server), address(), "STORE", "/echo", "-",
      { stdin = '[1,\n 2]\n' })
    assert.same({ 0, "[1,2]\n" }, { done.code, done.stdout })
  end)

  for _, body in ipairs { "text", "{", "" } do
    it(("refuses the BODY %q, which is no JSON"):format(body), function()
      assert_complains(call("STORE", "/echo", body), 64, "not JSON", "quotes")
    end)
  end

  it("reaches HOST as a name, an address, in brackets, with a user", function()
    local v6 = listening(support.start { support.korv, "serve", "--host", "::1", "--port", "0", "--host-key", support.key "host",
      "--authorized-keys", authorized(), support.path "endpoints.lua" })
    for host, login in pairs {
      [address()] = "the_user", ["bob@" .. address()] = "bob", ["[::1]:" .. v6.port] = "the_user", ["bob@[::1]:" .. v6.port] = "bob",
      ["localhost:" .. server.port] = "the_user", ["a@b@" .. address()] = "a@b",
    } do
      local done = call_bare("-i", support.key "client", "--known-hosts", support.path "host_forms", "--accept-new", host, "GET", "/login",
        { env = { USER = "the_user" } })
      assert.same({ 0, '"' .. login .. '"\n', "" }, { done.code, done.stdout, done.stderr })
    end
  end)

  it("takes port 8022 where HOST names none", function()
    for _, host in ipairs { "127.0.0.1", "[::1]", "localhost" } do
      local done = call_bare("-i", support.key "client", "--known-hosts", support.path "none", "--timeout", "2", host, "GET", "/")
      if done.code ~= 0 then assert.matches("port 8022", done.stderr) end
    end
  end)

  for _, host in ipairs { "::1", "[::1", "", "host:", "host:ssh", "@host", "host:65536", "host:0" } do
    it(("refuses the HOST %q"):format(host), function()
      assert_complains(call_bare("-i", support.key "client", host, "GET", "/"), 64, host, "[USER@]HOST[:PORT]")
    end)
  end

  for _, seconds in ipairs { "0", "-1", "1e999" } do
    it("refuses the --timeout " .. seconds, function()
      local done = call_bare("-i", support.key "client", "--timeout=" .. seconds, address(), "GET", "/hello")
      assert.same({ 64, "" }, { done.code, done.stdout })
      assert.matches("^korv: [^\n]*timeout", done.stderr)
    end)
  end

  it("ends at its --timeout", function()
    local done = call("--timeout", "0.2", "GET", "/wait")
    if done.code == 5 then return assert.matches("^504 ", done.stderr) end -- the server's clock was the faster
    assert_complains(done, 1, "GET /wait: no answer within 0.2 s")
  end)

  it("of what does not listen is 1, with the reason", function()
    assert_complains(call_bare("-i", support.key "client", "127.0.0.1:1", "GET", "/"), 1, "127.0.0.1 port 1", "refused")
    assert_complains(call_bare("-i", support.key "client", "no-such-host.invalid", "GET", "/"), 1, "no-such-host.invalid")
  end)

  it("with a key that is not let in is 1, with its fingerprint", function()
    local done = call_bare("-i", support.key "stranger", "--known-hosts", support.known_hosts(server), address(), "GET", "/hello")
    assert_complains(done, 1, support.fingerprint(support.key "stranger"), "authorized_keys")
  end)

  for what, make in pairs {
    ["is missing"] = function() return support.path "missing" end,
    ["is none"] = function()
      local path = support.write("text", "text")
      uv.fs_chmod(path, 384)
      return path
    end,
    ["others can read"] = function() return support.write("public", support.read(support.key "client")) end,
  } do
    it("with a key that " .. what .. " is 1 and names it", function()
      local path = make()
      assert_complains(call_bare("-i", path, address(), "GET", "/hello"), 1, path)
    end)
  end

  it("says what to do with an encrypted key", function()
    local path = support.path "encrypted"
    support.run { "ssh-keygen", "-q", "-t", "ed25519", "-N", "sesame", "-f", path }
    assert_complains(call_bare("-i", path, address(), "GET", "/hello"), 1, path, "passphrase", "--ssh")
  end)

  it("takes key and known_hosts from ~/.ssh where none are named, and the first key that is let in", function()
    local home = folder "home"
    folder "home/.ssh"
    assert_complains(call_bare(address(), "GET", "/hello", { env = { HOME = home } }), 1, home .. "/.ssh", "-i")
    support.run { "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home .. "/.ssh/id_ed25519" }
    support.run { "cp", support.key "client", home .. "/.ssh/id_ecdsa" }
    assert_complains(call_bare(address(), "GET", "/hello", { env = { HOME = home } }), 1, home .. "/.ssh/known_hosts", "--accept-new")
    assert.equal(0, call_bare("--accept-new", address(), "GET", "/hello", { env = { HOME = home } }).code)
    assert.equal(0, call_bare(address(), "GET", "/hello", { env = { HOME = home } }).code)
  end)

  it("--accept-new adds an unknown host to a file that was not there, and only it does", function()
    local path = support.path "hosts/known"
    local function go(...) return call_bare("-i", support.key "client", "--known-hosts", path, address(), "GET", "/hello", ...) end
    assert_complains(go(), 1, path, support.fingerprint(server.host_key), "--accept-new")
    assert.is_nil(uv.fs_stat(path))
    assert.equal(0, go("--accept-new").code)
    assert.equal(0, go().code)
  end)

  it("never replaces a changed key, and says loudly that it is one", function()
    local line = ("[127.0.0.1]:%d %s\n"):format(server.port, support.read(support.key "stranger" .. ".pub"):match "^%S+ %S+")
    local path = support.write("changed", line)
    local done = call_bare("-i", support.key "client", "--known-hosts", path, "--accept-new", address(), "GET", "/hello")
    assert_complains(done, 1, "HAS CHANGED", path, support.fingerprint(server.host_key))
    assert.equal(line, support.read(path))
  end)
end)

describe("korv stream", function()
  local server

  setup(function() server = serve(support.write("endpoints.lua", ENDPOINTS)) end)
  teardown(support.finish)

  local function argv(command, ...)
    return { support.korv, command, "-i", support.key "client", "--known-hosts", support.known_hosts(server),
      "127.0.0.1:" .. server.port, ... }
  end

  local function stream(...) return support.run(argv("stream", ...)) end

  local function is_waiting(what) return support.run(argv("call", "GET", "/waiting")).stdout == ('"%s"\n'):format(what) end

  it("prints an item a line, and the body at the end, if there is one", function()
    local done = stream("GET", "/some?n=3")
    assert.same({ 0, "1\n2\n3\n", "" }, { done.code, done.stdout, done.stderr })
    done = stream("get", "/some?n=1&last=end")
    assert.same({ 0, '1\n"end"\n', "" }, { done.code, done.stdout, done.stderr })
    done = stream("STORE", "/echo", "-1")
    assert.same({ 0, "-1\n", "" }, { done.code, done.stdout, done.stderr })
  end)

  it("prints them as they come", function()
    local running = support.start(argv("stream", "GET", "/ticking"))
    for i = 1, 3 do assert.equal(("[%d]"):format(i), running:line()) end
    running:kill()
  end)

  it("ends as korv call does", function()
    local done = stream("GET", "/some?n=1&code=503&last=busy")
    assert.same({ 5, "1\n", '503 "busy"\n' }, { done.code, done.stdout, done.stderr })
    done = stream("GET", "/nowhere")
    assert.same({ 4, "", "404 null\n" }, { done.code, done.stdout, done.stderr })
    done = stream("GET", "nowhere")
    assert.same({ 4, "" }, { done.code, done.stdout })
    assert.matches("^404 null\nkorv: 'nowhere' does not begin with '/': did you mean '/nowhere'%?\n$", done.stderr)
    done = stream("--timeout", "0.1", "GET", "/some?n=1&sleep=60")
    assert.same({ 5, "1\n" }, { done.code, done.stdout })
    assert.matches("^504 ", done.stderr)
    assert_complains(stream("STORE", "/echo", "{"), 64, "not JSON")
    assert_complains(support.run { support.korv, "stream", "-i", support.key "client", "127.0.0.1:1", "GET", "/" }, 1, "refused")
  end)

  -- The stream's output goes into a pipe, as in a shell.
  for resource, lines in pairs { ["/ticking"] = 3, ["/quiet"] = 1 } do
    it(("cancels %s where its reader has had enough"):format(resource), function()
      local words = {}
      for i, word in ipairs(argv("stream", "GET", resource)) do words[i] = "'" .. word .. "'" end
      local running = support.start { "bash", "-c", ("%s | head -%d; echo ${PIPESTATUS[0]}"):format(table.concat(words, " "), lines) }
      for i = 1, lines do assert.equal(("[%d]"):format(i), running:line()) end
      running:wait(5)
      assert.same({ "0\n", "" }, { running.stdout, running.stderr })
      assert.is_true(support.wait_for(function() return is_waiting "nobody waits" end))
    end)
  end

  for _, way in ipairs { {}, { "--ssh" } } do
    it("cancels at Ctrl-C " .. table.concat(way), function()
      local running = support.start(concat({ "setsid" }, argv("stream", "GET", "/quiet"), way))
      assert.equal("[1]", running:line(), running.stderr)
      assert.is_true(is_waiting "/quiet")
      uv.kill(-running.pid, "sigint") -- a terminal signals all that run in its foreground
      running:wait(5)
      assert.equal(2, running.signal, running.stderr)
      assert.is_true(support.wait_for(function() return is_waiting "nobody waits" end))
    end)
  end
end)

describe("korv describe", function()
  local server

  setup(function() server = serve(support.write("endpoints.lua", ENDPOINTS)) end)
  teardown(support.finish)

  local function describe_(...)
    return support.run { support.korv, "describe", "-i", support.key "client", "--known-hosts", support.known_hosts(server),
      "127.0.0.1:" .. server.port, ... }
  end

  it("prints verbs, resources and what they are for, in columns, with nothing that a terminal obeys", function()
    local done = describe_()
    local wanted = "GET     /users/:näme  Tells of a [31m user, whoever.\\xc2\\x9b1m\\xe2\\x80\\xae\nDELETE  /x\n"
      .. "STORE   /y            Of ops  [roles: ops, on call ]\nGET     /z            [roles: ops]\n"
    assert.same({ 0, wanted, "" }, { done.code, done.stdout, done.stderr })
    done = describe_("--prefix", "/none/")
    assert.same({ 0, "", "" }, { done.code, done.stdout, done.stderr })
  end)

  it("prints what the server answered with --json", function()
    local done = describe_ "--json"
    assert.same({ 0, "" }, { done.code, done.stderr })
    assert.equal("DELETE", korv.json.decode(done.stdout)[2].verb)
    assert.same({ 0, "[1]\n" }, { describe_("--json", "--prefix", "/odd").code, describe_("--json", "--prefix", "/odd").stdout })
  end)

  it("says so where a server does not describe itself", function()
    assert_complains(describe_("--prefix", "/nowhere"), 4, "127.0.0.1:" .. server.port, "GET /nowhere/endpoints", "--prefix")
    assert_complains(describe_("--prefix", "/odd"), 1, "GET /odd/endpoints", "--json")
    local done = describe_("--prefix", "/barred")
    assert.same({ 4, "", '403 {"message":"not for you"}\n' }, { done.code, done.stdout, done.stderr })
  end)

  it("says so of the first korv's server, in Python", function()
    local python = support.serve_python()
    assert_complains(support.run { support.korv, "describe", "-i", support.key "client", "--known-hosts", support.known_hosts(python),
      "127.0.0.1:" .. python.port }, 4, "GET /korv/endpoints", "another korv")
  end)
end)
