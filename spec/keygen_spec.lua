--- korv keygen: keys that everybody can read.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

-- Reads private keys with asyncssh and paramiko: of each the fingerprint, by both, and the comment.
local READ = [[
import sys, warnings
warnings.simplefilter("ignore")
import asyncssh, paramiko
for path in sys.argv[1:]:
    key = asyncssh.read_private_key(path)
    same = paramiko.Ed25519Key(filename=path).get_base64() == key.export_public_key().decode().split()[1]
    print(key.get_fingerprint() if same else "not the same", key.get_comment())
]]

local function keygen(...) return support.run { support.korv, "keygen", ... } end

local function mode(path) return ("%o"):format(uv.fs_stat(path).mode & 511) end

describe("korv keygen", function()
  teardown(support.finish)

  it("makes a key and its public half, and tells the fingerprint and what to do next", function()
    local path = support.path "made"
    local done = keygen("-C", "ann at home", path)
    assert.same({ 0, "" }, { done.code, done.stderr })
    assert.same({ "600", "644" }, { mode(path), mode(path .. ".pub") })
    for _, part in ipairs { support.fingerprint(path), "ann at home", ("cat %s.pub >> authorized_keys"):format(path),
      "korv call -i " .. path, "korv serve --host-key " .. path } do
      assert.is_truthy(done.stdout:find(part, 1, true), done.stdout)
    end
    assert.matches("^ssh%-ed25519 %S+ ann at home\n$", support.read(path .. ".pub"))
    local derived = support.run { "ssh-keygen", "-y", "-f", path }
    assert.same({ 0, support.read(path .. ".pub") }, { derived.code, derived.stdout }, derived.stderr)
  end)

  it("makes it for OpenSSH, asyncssh and paramiko, whatever the comment's length", function()
    local argv, wanted = { support.python, "-W", "ignore", support.write("read.py", READ) }, {}
    for length = 0, 17 do
      local path, comment = support.path("key" .. length), ("c"):rep(length)
      assert.equal(0, keygen("--comment", comment, path).code)
      argv[#argv + 1] = path
      -- of one without a comment asyncssh tells the path
      wanted[#wanted + 1] = ("%s %s\n"):format(support.fingerprint(path), length > 0 and comment or path)
    end
    local done = support.run(argv)
    assert.same({ 0, table.concat(wanted) }, { done.code, done.stdout }, done.stderr)
  end)

  it("makes it for korv itself, on both sides", function()
    local host, client = support.path "host_made", support.path "client_made"
    keygen(host)
    keygen(client)
    local server = support.start { support.korv, "serve", "--host", "127.0.0.1", "--port", "0", "--host-key", host, "--authorized-keys",
      client .. ".pub", support.root .. "/scripts/endpoints/hello.lua" }
    server.port = tonumber((server:line() or ""):match "port (%d+),") or error(server:describe "does not listen")
    server.host_key, server.must_end_well = host, true
    local done = support.run { support.korv, "call", "-i", client, "--known-hosts", support.known_hosts(server),
      "127.0.0.1:" .. server.port, "GET", "/hello" }
    assert.same({ 0, '{"msg":"Hello World!"}\n' }, { done.code, done.stdout }, done.stderr)
  end)

  it("never replaces a key or a public half", function()
    local path, alone = support.key "there", support.write("alone.pub", "of another key\n")
    local before = support.read(path)
    for file, named in pairs { [path] = path, [alone:gsub("%.pub$", "")] = alone } do
      local done = keygen(file)
      assert.same({ 1, "" }, { done.code, done.stdout })
      assert.matches("^korv: [^\n]*exists already[^\n]*\n$", done.stderr)
      assert.is_truthy(done.stderr:find(named, 1, true), done.stderr)
    end
    assert.equal(0, os.remove(path .. ".pub") and 0)
    local done = keygen(path)
    assert.equal(1, done.code)
    assert.is_truthy(done.stderr:find(path .. " exists already", 1, true), done.stderr)
    assert.same({ before, "of another key\n" }, { support.read(path), support.read(alone) })
    assert.is_nil(uv.fs_stat((alone:gsub("%.pub$", ""))))
  end)

  it("makes ~/.ssh/id_ed25519 with the user's name where nothing is said", function()
    local home = support.path "home"
    assert(uv.fs_mkdir(home, 448))
    local done = support.run({ support.korv, "keygen" }, { env = { HOME = home, USER = "ann" } })
    assert.equal(0, done.code, done.stderr)
    assert.equal("700", mode(home .. "/.ssh"))
    assert.is_truthy(support.read(home .. "/.ssh/id_ed25519.pub"):find(" ann@" .. uv.os_gethostname(), 1, true))
  end)

  it("names a user by number whom the system does not know, as in a container", function()
    local path = support.path "of_nobody"
    local done = pair.program([[
      uv.os_unsetenv "USER"
      uv.os_get_passwd = function() return nil, "ENOENT: no such file or directory", "ENOENT" end
      assert(require "korv.keygen" { file = arg[1] })]], { path })
    assert.equal(0, done.code, done.stderr)
    assert.is_truthy(support.read(path .. ".pub"):find((" %d@%s\n"):format(uv.getuid(), uv.os_gethostname()), 1, true))
  end)

  it("says why it could not", function()
    local done = keygen(support.path "nowhere/key")
    assert.same({ 1, "" }, { done.code, done.stdout })
    assert.matches("^korv: [^\n]*nowhere/key: No such file", done.stderr)
    for _, comment in ipairs { "two\nlines", ("c"):rep(1025) } do
      done = keygen("-C", comment, support.path "unmade")
      assert.equal(64, done.code)
      assert.matches("^korv: %-%-comment must be one line", done.stderr)
      assert.is_nil(uv.fs_stat(support.path "unmade"))
    end
  end)

  it("is what a server makes a missing host key with", function()
    local authorized = support.key "client" .. ".pub"
    local path = support.path "by_server"
    assert(korv.server { host_keys = { path }, authorized_client_keys = authorized })
    local done = support.run { support.python, "-W", "ignore", support.write("read.py", READ), path }
    assert.same({ 0, ("%s %s\n"):format(support.fingerprint(path), path) }, { done.code, done.stdout }, done.stderr)
  end)
end)
