--- korv serve: what it serves and says, how it ends, and what it refuses.

local commanding = require "spec.commanding"
local support = require "spec.support"
local uv = require "luv"

local assert_complains, authorized, concat = commanding.assert_complains, commanding.authorized, commanding.concat
local folder, listening, serve, serve_argv = commanding.folder, commanding.listening, commanding.serve, commanding.serve_argv

-- Without the right of root to read what nobody may.
local POWERLESS = uv.getuid() == 0 and { "setpriv", "--bounding-set", "-dac_override,-dac_read_search" } or {}

local function file_mode(path) return ("%o"):format(uv.fs_stat(path).mode & 511) end

describe("korv serve", function()
  local script

  setup(function() script = commanding.script() end)
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
      local done = support.run(commanding.argv(server, "call", "GET", "/hello"))
      assert.equal(0, done.code, done.stderr)
    end
  end)

  for _, workers in ipairs { "1", "2" } do
    it("serves with " .. workers .. " worker(s) where stdin and stderr were closed, which lead nowhere then", function()
      local server = listening(support.start(concat({ "sh", "-c", 'exec "$@" <&- 2>&-', "sh" }, serve_argv("--workers", workers, script))))
      for _, fd in ipairs { "0", "2" } do assert.equal("/dev/null", uv.fs_readlink(("/proc/%d/fd/%s"):format(server.pid, fd))) end
      local done = support.run(commanding.argv(server, "call", "GET", "/hello"))
      assert.equal(0, done.code, done.stderr)
    end)
  end

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
      assert.equal(text, support.run(commanding.argv(server, "call", "GET", resource)).stdout)
    end
  end)

  for _, signal in ipairs { "sigterm", "sigint" } do
    it("ends with 0 at " .. signal .. ", though an endpoint waits and a script's own timer goes on", function()
      local timer = support.write("timer.lua", [[
        require("luv").new_timer():start(1000, 1000, function() end)
        return function() end]])
      local server = serve("--drain", "0.5", script, timer)
      local call = support.start(commanding.argv(server, "call", "GET", "/wait"))
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

    it("a folder of scripts cannot be read, or holds none", function()
      local path = folder "shut"
      refuses(1, serve_argv(path), path .. ": no *.lua in this folder")
      support.write("shut/hello.lua", "return function() end")
      uv.fs_chmod(path, 0)
      refuses(1, concat(POWERLESS, serve_argv(path)), path, "ermission denied")
      uv.fs_chmod(path, 448)
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
    assert.equal(0, support.run(commanding.argv(server, "call", "GET", "/hello")).code)
  end)
end)
