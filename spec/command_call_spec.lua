--- korv call: what it says and sends, where it connects to, which keys it takes and trusts, and the exit status that it ends with.

local commanding = require "spec.commanding"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local assert_complains = commanding.assert_complains

describe("korv call", function()
  local server

  setup(function() server = commanding.serve(commanding.script()) end)
  teardown(support.finish)

  local function address() return "127.0.0.1:" .. server.port end

  -- `korv call` of the server, with the keys that are right.
  local function call(...)
    return support.run(commanding.argv(server, "call", ...))
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

  for what, argv in pairs {
    ["a short body"] = { "call", "GET", "/hello" }, ["a long body"] = { "call", "STORE", "/echo", '"' .. ("x"):rep(100000) .. '"' },
    ["a string as it is"] = { "call", "STORE", "/echo", '"text"', "--raw" }, ["a stream"] = { "stream", "GET", "/some?n=5" },
    ["a list of endpoints"] = { "describe" },
  } do
    it("ends with status 1 where " .. what .. " cannot be written", function()
      local words = commanding.argv(server, argv[1], table.unpack(argv, 2))
      local done = support.run(commanding.concat({ "sh", "-c", 'exec "$@" >/dev/full', "sh" }, words))
      assert_complains(done, 1, "cannot write to standard output: No space left on device")
    end)
  end

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
    local v6 = commanding.listening(support.start { support.korv, "serve", "--host", "::1", "--port", "0", "--host-key", support.key "host",
      "--authorized-keys", commanding.authorized(), support.path "endpoints.lua" })
    for host, login in pairs {
      [address()] = "the_user", ["bob@" .. address()] = "bob", ["[::1]:" .. v6.port] = "the_user", ["bob@[::1]:" .. v6.port] = "bob",
      ["localhost:" .. server.port] = "the_user", ["a@b@" .. address()] = "a@b",
    } do
      local done = call_bare("-i", support.key "client", "--known-hosts", support.path "host_forms", "--accept-new", host, "GET", "/login",
        { env = { USER = "the_user" } })
      assert.same({ 0, '"' .. login .. '"\n', "" }, { done.code, done.stdout, done.stderr })
    end
  end)

  it("logs in as whom the system knows where the environment names nobody", function()
    local argv = commanding.argv(server, "call", "GET", "/login")
    assert.equal(0, support.run(argv, { env = { USER = "" } }).code)
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

  it("asks nobody for the passphrase of a key, in PEM, at a terminal", function()
    local path = support.path "encrypted_pem"
    support.run { "ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "sesame", "-f", path }
    local command = ("'%s' call -i '%s' --known-hosts '%s' %s GET /hello"):format(support.korv, path, support.known_hosts(server),
      address())
    local done = support.run({ "script", "--quiet", "--return", "--command", command, "/dev/null" }, { stdin = true }) -- nobody types
    assert.equal(1, done.code)
    assert.is_nil(done.stdout:find "pass phrase")
    assert.is_truthy(done.stdout:find("give its passphrase", 1, true), done.stdout)
  end)

  it("takes key and known_hosts from ~/.ssh where none are named, and the first key that is let in", function()
    local home = commanding.folder "home"
    commanding.folder "home/.ssh"
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
