--- The client over the user's own ssh, an OpenSSH: `ssh = true` and `korv call --ssh`.
--
-- OpenSSH finds ~/.ssh by the user's entry in the system, whatever HOME says; so a command `ssh` that comes first on PATH gives it the
-- configuration of the spec.

local pair = require "spec.pair"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local PATH = os.getenv "PATH"

-- A folder for PATH whose ssh is this text of a shell script.
local function ssh_folder(name, text)
  local folder = support.path(name)
  assert(support.run({ "mkdir", "-p", folder }).code == 0)
  uv.fs_chmod(support.write(name .. "/ssh", "#!/bin/sh\n" .. text), 493)
  return folder .. ":" .. PATH
end

local function with_config(name, config)
  return ssh_folder(name, ("echo $$ >'%s'\nexec /usr/bin/ssh -F '%s' \"$@\"\n"):format(support.path(name .. "/pid"),
    support.write(name .. ".config", config)))
end

local function exists(pid) return uv.kill(pid, 0) == 0 end -- as a zombie, too

local function runs(pid) return not (support.read("/proc/" .. pid .. "/stat") or ") Z"):find "%) Z" end

describe("over ssh,", function()
  local server, config

  setup(function()
    pair.begin()
    server = support.serve "spec/data/app.lua"
    config = ("Host *\nGlobalKnownHostsFile /dev/null\nUserKnownHostsFile %s\nStrictHostKeyChecking yes\nIdentitiesOnly yes\nHost api\n"
      .. "HostName 127.0.0.1\nPort %d\nIdentityFile %s\n"):format(support.known_hosts(server), server.port, support.key "client")
    uv.os_setenv("PATH", with_config("config", config))
  end)
  teardown(function()
    uv.os_setenv("PATH", PATH)
    pair.finish()
  end)

  local function pid() return tonumber(support.read(support.path "config/pid")) end

  local function client(options)
    local given = { host = "api", ssh = true, timeout = 10 }
    for name, value in pairs(options or {}) do given[name] = value end
    return pair.in_task(function() return korv.client(given) end)
  end

  local function call(...) return support.run { support.korv, "call", "--ssh", ... } end

  describe("korv call", function()
    it("reaches a Host of the configuration", function()
      local done = call("api", "GET", "/hello")
      assert.same({ 0, '{"msg":"Hello World!"}\n', "" }, { done.code, done.stdout, done.stderr })
    end)

    it("sends a body and tells a status", function()
      assert.equal("[9007199254740993,[],{}]\n", call("api", "STORE", "/echo", "[9007199254740993,[],{}]").stdout)
      local done = call("api", "GET", "/nowhere")
      assert.same({ 4, "", "404 null\n" }, { done.code, done.stdout, done.stderr })
    end)

    it("hands on the port, the key and the known hosts that it is given", function()
      for _, name in ipairs { "named_hosts", [[hosts "named" with %h and \ ]] } do
        local done = call("-i", support.key "client", "--known-hosts", support.known_hosts(server, name),
          "somebody@127.0.0.1:" .. server.port, "GET", "/hello")
        assert.same({ 0, "" }, { done.code, done.stderr })
      end
    end)

    it("refuses an unknown host, and adds it with --accept-new", function()
      local path = support.path "new_hosts"
      local function go(...)
        return call("--known-hosts", path, "-i", support.key "client", "127.0.0.1:" .. server.port, "GET", "/hello", ...)
      end
      local done = go()
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.matches("^korv: [^\n]*[Hh]ost key[^\n]*\n$", done.stderr)
      assert.equal(0, go("--accept-new").code)
      assert.equal(0, go().code)
    end)

    it("refuses a changed host key, with --accept-new too", function()
      local line = ("[127.0.0.1]:%d %s\n"):format(server.port, support.read(support.key "another" .. ".pub"):match "^%S+ %S+")
      local path = support.write("changed_hosts", line)
      local done = call("--accept-new", "--known-hosts", path, "api", "GET", "/hello")
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.matches("CHANGED", done.stderr)
      assert.equal(line, support.read(path))
    end)

    it("of a key that is not let in says what ssh said, in one line", function()
      local done = call("-i", support.key "stranger", "127.0.0.1:" .. server.port, "GET", "/hello")
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.matches("^korv: [^\n]*ssh: [^\n]*Permission denied %(publickey%)[^\n]*\n$", done.stderr)
    end)

    it("of what does not listen says what ssh said, in one line", function()
      local done = call("127.0.0.1:1", "GET", "/hello")
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.matches("^korv: [^\n]*ssh: [^\n]*Connection refused\n$", done.stderr)
    end)

    it("without an ssh says so", function()
      local done = support.run({ "/usr/bin/lua5.4", support.korv, "call", "--ssh", "api", "GET", "/hello" },
        { env = { PATH = support.path "nothing" } })
      assert.same({ 1, 0, "" }, { done.code, done.signal, done.stdout })
      assert.matches("^korv: cannot run ssh: [^\n]+\n$", done.stderr)
    end)

    it("takes the keys of an agent", function()
      local socket = support.path "agent"
      support.start { "ssh-agent", "-D", "-a", socket }
      assert(support.wait_for(function() return uv.fs_stat(socket) end))
      assert(support.run({ "ssh-add", "-q", support.key "client" }, { env = { SSH_AUTH_SOCK = socket } }).code == 0)
      local own = config:gsub("IdentityFile %S+", ""):gsub("IdentitiesOnly yes", "IdentityAgent " .. socket)
      local done = support.run({ support.korv, "call", "--ssh", "api", "GET", "/hello" }, { env = { PATH = with_config("agents", own) } })
      assert.same({ 0, "" }, { done.code, done.stderr })
    end)
  end)

  describe("a client", function()
    it("carries calls that wait, yield and call back, and a body of 1 MiB", function()
      local own, called = assert(client()), nil
      local body = ("x"):rep(1 << 20)
      own:get("/slow", 1, function(response) called = response.body end)
      assert.is_true(own:store("/echo", body).body == body)
      assert.equal("Hello World!", pair.in_task(function() return own:get "/hello" end).body.msg)
      pair.wait_for(function() return called end)
      assert.equal(1, called)
      own:close()
    end)

    it("takes any host's key with known_hosts = false", function()
      local own = assert(client { host = "127.0.0.1", port = server.port, client_keys = { support.key "client" }, known_hosts = false })
      assert.equal(200, own:get("/hello").code)
      own:close()
    end)

    it("whose ssh is killed ends its calls, and those to come", function()
      local own, ended = assert(client()), nil
      own:get("/slow", nil, function(...) ended = table.pack(...) end)
      uv.kill(pid(), "sigkill")
      pair.wait_for(function() return ended end)
      assert.is_nil(ended[1])
      assert.matches("^GET /slow: .*ssh", ended[2])
      assert.equal("ECONNRESET", ended[3])
      assert.equal("ECONNRESET", select(3, own:get "/hello"))
    end)

    it("whose server ends the connection ends its calls", function()
      local other = support.serve "spec/data/app.lua"
      local own = assert(client { port = other.port, known_hosts = support.known_hosts(other, "others") })
      local ended
      own:get("/slow", nil, function(...) ended = table.pack(...) end)
      other.must_end_well = nil
      other:kill()
      pair.wait_for(function() return ended end)
      assert.is_nil(ended[1])
    end)

    it("whose ssh does not connect is ETIMEDOUT, and that ssh is ended", function()
      local path = support.path "silent/pid"
      local done = pair.program([[print(korv.client { host = "api", ssh = true, timeout = 0.5 })]], {},
        { env = { PATH = ssh_folder("silent", ("echo $$ >'%s'\nexec sleep 60\n"):format(path)) } })
      assert.matches("^nil\t[^\n]*api[^\n]*0%.5 s[^\n]*\tETIMEDOUT\n$", done.stdout)
      pair.wait_for(function() return not runs(tonumber(support.read(path))) end)
    end)

    it("takes an answer without a code for none", function()
      local env = { PATH = ssh_folder("codeless", [[
        while read -r line; do
          case $line in
            *'"verb"'*) printf '{"request_id":%s,"code":%s}\n' "$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')" "$CODE" ;;
            *) echo '{"request_id":0,"code":400,"body":null}' ;;
          esac
        done]]) }
      for _, code in ipairs { '"200"', "null", "200.5" } do
        env.CODE = code
        for _, command in ipairs { "call", "stream" } do
          local done = support.run({ support.korv, command, "--ssh", "--timeout", "5", "api", "GET", "/hello" }, { env = env })
          assert.same({ 1, "", "korv: GET /hello: what the server answered has no code\n" }, { done.code, done.stdout, done.stderr })
        end
      end
    end)

    it("refuses a request over the limit before it is sent, as any client does", function()
      local own <close> = assert(client { max_request_bytes = 2000 })
      local text, message = ("x"):rep(2000), "STORE /echo: request: its JSON form is larger than 2000 bytes"
      assert.same({ nil, message, "EMSGSIZE" }, { own:store("/echo", text) })
      assert.same({ nil, "STORE /echo: body.f: a function has no JSON form", "EJSON" }, { own:store("/echo", { f = print }) })
      local next_item, items = own:stream("STORE", "/echo", text)
      assert.same({ false, message, "EMSGSIZE" }, { next_item(items) })
      assert.equal(200, own:store("/echo", text:sub(100)).code)
      local unlimited <close> = assert(client())
      assert.equal("EMSGSIZE", select(3, unlimited:store("/echo", ("x"):rep(1 << 24))))
    end)

    it("closed, leaves no ssh behind", function()
      local own = assert(client())
      local ssh = pid()
      assert.is_true(exists(ssh))
      own:close()
      assert.equal("ECLOSED", select(3, own:get "/hello"))
      pair.wait_for(function() return not exists(ssh) end)
    end)

    it("dropped, leaves no ssh behind", function()
      assert(client())
      local ssh = pid()
      pair.wait_for(function()
        collectgarbage()
        return not exists(ssh)
      end)
    end)
  end)

  describe("a program ends well", function()
    for what, last in pairs {
      ["with the client open"] = "", ["right after close()"] = "client:close()",
      ["with a call under way"] = "client:get('/slow', nil, function() end)", ["after korv.run"] = "korv.run()",
      ["after a wait for nothing"] = "client:close() korv.run()",
    } do
      it(what, function()
        local done = pair.program([[
          local client = assert(korv.client { host = "api", ssh = true })
          print(client:get("/hello").body.msg)
        ]] .. last)
        assert.same({ 0, 0, "Hello World!\n", "" }, { done.code, done.signal, done.stdout, done.stderr })
        pair.wait_for(function() return not runs(pid()) end)
      end)
    end
  end)
end)
