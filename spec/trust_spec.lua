--- Whom a server lets in, with OpenSSH as the client: what a line of authorized_keys demands, what of a key is no proof, and which files
-- are not trusted.

local changing = require "spec.changing"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local HELLO = '{"id":1,"verb":"GET","resource":"/peer"}\n'

local function public(name) return (support.read(support.key(name) .. ".pub"):gsub("\n$", "")) end

local function authorized(name, ...) return support.write(name, table.concat({ ... }, "\n") .. "\n") end

-- Runs OpenSSH to its end: it asks who it is, and gets 200 where it was let in.
local function ssh(server, options)
  local all = { key = options.key or support.key(options.name), "-o", "LogLevel=VERBOSE", table.unpack(options) }
  local argv = support.ssh(server, all, table.unpack(options.command or { "-s", "127.0.0.1", "korv" }))
  return support.run(argv, { stdin = HELLO, env = { SSH_AUTH_SOCK = "" } })
end

local function assert_let_in(server, options)
  local done = ssh(server, options)
  assert.matches('"code":200', done.stdout, nil, nil, done:describe "was not let in")
  return korv.json.decode(done.stdout).body
end

local function assert_refused(server, options)
  local done = ssh(server, options)
  assert.same({ "", 255 }, { done.stdout, done.code })
  assert.matches("Permission denied", done.stderr)
  return done
end

local function new_server(options)
  local all = { host = "127.0.0.1", port = 0, host_keys = { support.key "host" } }
  for name, value in pairs(options) do all[name] = value end
  local server = assert(korv.server(all))
  server:get("/peer", function(request) return 200, request.peer end)
  return server
end

local function serve(options) return pair.listen(new_server(options)) end

local function dial(server, name) return assert(pair.dial(server, { client_keys = { support.key(name) } })) end

local function begin() pair.logged = {} end

local function logged(...)
  for _, text in ipairs { ... } do pair.wait_for_log(pair.literal(text)) end
end

local function no_request(server) assert.equal(0, server:counters().requests) end

describe("a key", function()
  setup(pair.begin)
  before_each(begin)
  teardown(pair.finish)

  it("that is listed lets in, and is the identity whatever user name is typed", function()
    local server = serve { authorized_client_keys = authorized("one", public "ann") }
    for _, login in ipairs { "root", "bob", "a b" } do
      assert.same({ name = "ann", login = login, address = "127.0.0.1", roles = {}, fingerprint = support.fingerprint(support.key "ann") },
        assert_let_in(server, { name = "ann", "-o", "User=\"" .. login .. '"' }))
    end
  end)

  it("that is not listed is refused", function()
    local server = serve { authorized_client_keys = authorized("one", public "ann") }
    assert_refused(server, { name = "bob" })
    logged("refused the key " .. support.fingerprint(support.key "bob") .. " from 127.0.0.1: it is not authorized")
    no_request(server)
  end)

  it("that has expired is refused", function()
    local hour = os.date("%Y%m%d%H%M", os.time() - 60)
    local server = serve { authorized_client_keys = authorized("expired", ('expiry-time="%s" %s'):format(hour, public "ann"),
      ('expiry-time="%sZ" %s'):format(os.date("!%Y%m%d%H%M", os.time() + 120), public "bob")) }
    assert_refused(server, { name = "ann" })
    logged("from 127.0.0.1: it has expired")
    assert_let_in(server, { name = "bob" })
  end)

  it("from the wrong address is refused", function()
    local server = serve { authorized_client_keys = authorized("from", 'from="127.0.0.2" ' .. public "ann",
      'from="!127.0.0.2,*" ' .. public "bob") }
    assert_refused(server, { name = "ann" })
    logged("from 127.0.0.1: it may not be used from this address")
    assert.equal("127.0.0.2", assert_let_in(server, { name = "ann", "-b", "127.0.0.2" }).address)
    assert_let_in(server, { name = "bob" })
    assert_refused(server, { name = "bob", "-b", "127.0.0.2" })
  end)

  it("that is offered and not signed with lets nobody in", function()
    local server = serve { authorized_client_keys = authorized("offered", public "ann") }
    local half = support.write("half.pub", public "ann" .. "\n")
    assert.matches("Server accepts key: ", assert_refused(server, { key = half, "-v" }).stderr)
    no_request(server)
  end)

  it("behind an option that is unknown or not honoured is refused, and the log says why", function()
    local lines = { public "good" }
    for _, option in ipairs { "colour", 'principals="a"', "verify-required", "cert-authority", 'environment="PATH=/"', 'command="/bin/sh"',
      'from="host.example"', 'expiry-time="tomorrow"', "restrict," } do
      lines[#lines + 1] = option .. " " .. public("refused" .. #lines)
    end
    local server = serve { authorized_client_keys = authorized("options", table.unpack(lines)) }
    for i = 1, #lines - 1 do
      assert_refused(server, { name = "refused" .. i })
      logged(support.path "options" .. ":" .. i + 1 .. ": ")
    end
    assert_let_in(server, { name = "good" })
  end)

  it("whose line was tampered with is refused", function()
    local line, lines = public "ann", { public "good" }
    local type, blob = line:match "^(%S+) (%S+)"
    for _, tampered in ipairs {
      (line:gsub("(%S)( ann)$", function(last, rest) return (last == "A" and "B" or "A") .. rest end)), -- another key
      type .. " " .. blob:sub(1, -2), "ssh-rsa " .. blob, "ssh-ed25519x " .. blob, type .. "  ann",
      line:gsub("AAAA", "AAAB", 1), blob, "-" .. line, (line:gsub(" ", "\u{A0}", 1)),
    } do
      lines[#lines + 1] = tampered
    end
    local server = serve { authorized_client_keys = authorized("tampered", table.unpack(lines)) }
    assert_refused(server, { name = "ann" })
    assert_let_in(server, { name = "good" })
  end)

  for kind, make in pairs {
    ["DSA"] = { "-t", "dsa", "-N", "" }, ["RSA of 1024 bits"] = { "-t", "rsa", "-b", "1024", "-N", "" },
  } do
    it("that is too weak is refused: " .. kind, function()
      local key = pair.make_key("weak_" .. make[2], table.unpack(make))
      local line = support.read(key .. ".pub"):gsub("\n", "")
      local server = serve { authorized_client_keys = authorized("weak", line, public "ann"), login_timeout = 5 }
      logged(support.path "weak" .. ":1: ", "too weak; make a new one with `ssh-keygen -t ed25519`")
      assert.not_matches('"code"', ssh(server, { key = key, "-o", "PubkeyAcceptedAlgorithms=+ssh-dss" }).stdout)
      no_request(server)
    end)
  end

  it("of RSA signs with SHA-2, never with SHA-1", function()
    local key = pair.make_key("rsa", "-t", "rsa", "-b", "2048", "-N", "")
    local server = serve { authorized_client_keys = key .. ".pub", login_timeout = 5 }
    for _, algorithm in ipairs { "rsa-sha2-256", "rsa-sha2-512" } do
      assert_let_in(server, { key = key, "-o", "PubkeyAcceptedAlgorithms=" .. algorithm })
    end
    local before = server:counters().requests
    assert.not_matches('"code"', ssh(server, { key = key, "-o", "PubkeyAcceptedAlgorithms=ssh-rsa" }).stdout)
    assert.equal(before, server:counters().requests)
  end)

  it("in a certificate is refused, whoever has signed that", function()
    local key, ca = support.key "certified", support.key "ca"
    local made = support.run { "ssh-keygen", "-q", "-s", ca, "-I", "id", "-n", "anybody,root", key .. ".pub" }
    assert.equal(0, made.code, made.stderr)
    local alone = support.path "certificate_only"
    support.run { "cp", key, alone }
    support.run { "cp", key .. "-cert.pub", alone .. "-cert.pub" }
    local options = { key = alone, "-o", "PubkeyAcceptedAlgorithms=ssh-ed25519-cert-v01@openssh.com", "-l", "root" }
    for _, line in ipairs { "cert-authority " .. public "ca", public "ca", public "certified", (support.read(key .. "-cert.pub")) } do
      local server = serve { authorized_client_keys = authorized("certificates", line, public "ann"), login_timeout = 5 }
      assert.not_matches('"code"', ssh(server, options).stdout)
      no_request(server)
    end
  end)

  it("is the only way in", function()
    local server = serve { authorized_client_keys = authorized("one", public "ann") }
    for _, method in ipairs { "none", "password", "keyboard-interactive", "hostbased", "gssapi-with-mic" } do
      local done = assert_refused(server, { name = "ann", "-o", "PreferredAuthentications=" .. method, "-o", "BatchMode=no", "-o",
        "NumberOfPasswordPrompts=1", "-o", "GSSAPIAuthentication=yes", "-o", "HostbasedAuthentication=yes" })
      assert.matches("Permission denied %(publickey%)", done.stderr)
    end
  end)
end)

describe("a terminal", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("is refused to a key with no-pty or restrict", function()
    local server = serve { authorized_client_keys = authorized("pty", "no-pty " .. public "ann", "restrict " .. public "bob",
      "restrict,pty " .. public "cleo", public "dora") }
    for name, refused in pairs { ann = true, bob = true, cleo = false, dora = false } do
      local done = ssh(server, { name = name, "-tt", command = { "127.0.0.1" } })
      assert.equal(refused, done.stderr:find("PTY allocation request failed", 1, true) ~= nil, name .. ": " .. done.stderr)
      assert_let_in(server, { name = name })
    end
  end)
end)

describe("several files of keys", function()
  setup(pair.begin)
  before_each(begin)
  teardown(pair.finish)

  it("let in who is in any of them", function()
    local server = serve { authorized_client_keys = { authorized("first", public "ann"), authorized("second", public "bob") } }
    assert_let_in(server, { name = "ann" })
    assert_let_in(server, { name = "bob" })
    assert_refused(server, { name = "cleo" })
  end)

  it("are given one by one on the command line, and each is watched", function()
    local second = authorized("second", public "bob")
    local server = changing.command { "--authorized-keys", authorized("first", public "ann"), "--authorized-keys", second,
      support.root .. "/spec/data/app.lua" }
    local function code(name)
      local done = ssh(server, { name = name })
      return done.stdout:match '"code":(%d+)' or done.code
    end
    assert.same({ "404", "404", 255 }, { code "ann", code "bob", code "cleo" })
    authorized("second", public "cleo")
    pair.wait_for(function() return code "cleo" == "404" end)
    assert.same({ "404", 255 }, { code "ann", code "bob" })
    assert.is_true(server:stop())
    server.must_end_well = nil
  end)
end)

describe("a function in place of a file", function()
  local asked, answer

  local function authorize(key, peer)
    asked[#asked + 1] = { key = key, peer = peer }
    return answer(key, peer)
  end

  setup(pair.begin)
  before_each(function()
    begin()
    asked = {}
  end)
  teardown(pair.finish)

  it("is asked with the key and where it comes from, and says who that is", function()
    local server = serve { authorize = authorize }
    local blob = public("ann"):match "^%S+ (%S+)"
    function answer(key) return key.blob == blob and { name = "Ann", roles = { "ops" } } or nil end
    local body = assert_let_in(server, { name = "ann", "-l", "typed", "-b", "127.0.0.3" })
    assert.same({ "Ann", { "ops" }, "127.0.0.3", "typed" }, { body.name, body.roles, body.address, body.login })
    assert.same({ key = { type = "ssh-ed25519", blob = blob, fingerprint = support.fingerprint(support.key "ann") },
      peer = { address = "127.0.0.3", login = "typed" } }, asked[1])
    assert.equal(2, #asked)
    assert_refused(server, { name = "bob" })
    assert.equal(3, #asked)
    logged("refused the key " .. support.fingerprint(support.key "bob") .. " from 127.0.0.1: it is not authorized")
  end)

  it("may leave out the name and the roles", function()
    local server = serve { authorize = authorize }
    function answer() return {} end
    local body = assert_let_in(server, { name = "ann" })
    assert.same({ "", {} }, { body.name, body.roles })
  end)

  it("that says yes to the offer and no to the signature refuses", function()
    local server = serve { authorize = authorize }
    function answer() return #asked == 1 and {} or nil end
    assert_refused(server, { name = "ann" })
    assert.equal(2, #asked)
    no_request(server)
  end)

  for what, wrong in pairs {
    ["an error"] = function() error "boom" end,
    ["an error that is no text"] = function() error {} end,
    ["a wait"] = function() korv.sleep(0.01); return {} end,
    ["an endless loop"] = function() while true do end end, -- luacheck: ignore
    ["true"] = function() return true end,
    ["a name"] = function() return "ann" end,
    ["a field that is unknown"] = function() return { name = "ann", role = "ops" } end,
    ["a name that is no text"] = function() return { name = 7 } end,
    ["roles that are no list"] = function() return { roles = "ops" } end,
    ["a role that is no text"] = function() return { roles = { true } } end,
  } do
    it("refuses by " .. what .. ", which is logged, and others are served on", function()
      local server = serve { authorize = authorize, cpu_limit = 0.2, login_timeout = 20 }
      answer = wrong
      assert_refused(server, { name = "ann" })
      pair.wait_for_log "error .*authorize"
      no_request(server)
      function answer() return { name = "bob" } end
      assert.equal("bob", assert_let_in(server, { name = "bob" }).name)
    end)
  end

  it("is asked again about who is there when keys are read again", function()
    local server = serve { authorize = authorize }
    function answer() return { name = "x", roles = { "a" } } end
    local ann, bob, cleo = dial(server, "ann"), dial(server, "bob"), dial(server, "cleo")
    local bobs, cleos = support.fingerprint(support.key "bob"), support.fingerprint(support.key "cleo")
    function answer(key) return key.fingerprint ~= bobs and { name = "x", roles = { key.fingerprint == cleos and "b" or "a" } } or nil end
    server:reload_keys()
    logged(bobs .. " of x is no longer authorized: its session ends", cleos .. " of x may do something else now: its session ends")
    assert.equal(200, ann:get("/peer").code)
    assert.matches("no longer authorized", (select(2, bob:get "/peer")))
    assert.matches("may do something else now", (select(2, cleo:get "/peer")))
  end)

  it("does not go together with a file", function()
    pair.must_raise("korv%.server: authorize takes the place of authorized_client_keys", function()
      korv.server { host_keys = { support.key "host" }, authorize = authorize, authorized_client_keys = "authorized_keys" }
    end)
    pair.must_raise("korv%.server: authorize must be a function", function()
      korv.server { host_keys = { support.key "host" }, authorize = {} }
    end)
  end)
end)

describe("a line that changes while its key is logged in", function()
  setup(pair.begin)
  before_each(begin)
  teardown(pair.finish)

  it("ends the session: what it may do has changed", function()
    local server = serve { authorized_client_keys = authorized("changing", public "ann", public "bob", public "cleo", public "dora") }
    local clients = {}
    for _, name in ipairs { "ann", "bob", "cleo", "dora" } do clients[name] = dial(server, name) end
    authorized("changing", "# another place", public "cleo", 'command="GET /nothing" ' .. public "ann",
      'environment="KORV_ROLES=ops" ' .. public "bob", 'from="10.0.0.1" ' .. public "dora")
    server:reload_keys()
    local other = "may do something else now"
    for name, reason in pairs { ann = other, bob = other, dora = "may not be used from this address" } do
      assert.matches(reason, (select(2, clients[name]:get "/peer")))
    end
    assert.equal(200, clients.cleo:get("/peer").code)
    assert.equal(403, dial(server, "ann"):get("/peer").code)
    assert.same({ "ops" }, dial(server, "bob"):get("/peer").body.roles)
  end)
end)

describe("a file that others can get at", function()
  local key, keys

  setup(pair.begin)
  before_each(function()
    begin()
    key, keys = support.path "guarded_host", support.path "guarded_keys"
    support.run { "cp", "-p", support.key "host", key }
    authorized("guarded_keys", public "ann")
    support.run { "chmod", "600", key, keys }
  end)
  teardown(pair.finish)

  local function options() return { host = "127.0.0.1", port = 0, host_keys = { key }, authorized_client_keys = keys } end

  local function assert_mended(pattern)
    local none, message, name = korv.server(options())
    assert.same({ nil, "EPERM" }, { none, name })
    assert.matches(pattern, message)
    local mend = message:match "mend it with: (.*)$"
    assert.equal(0, support.run({ "sh", "-c", mend }).code)
    assert(korv.server(options()))
  end

  it("is refused at the start, with the command that mends it: a private key", function()
    for _, mode in ipairs { "640", "604", "644", "660", "610", "601", "777" } do
      support.run { "chmod", mode, key }
      assert_mended("others can read this private key %(mode 0" .. mode .. "%); mend it with: chmod 600 ")
    end
  end)

  it("is refused at the start, with the command that mends it: authorized keys", function()
    for _, mode in ipairs { "620", "602", "666" } do
      support.run { "chmod", mode, keys }
      assert_mended("others can write this file %(mode 0" .. mode .. "%)")
    end
  end)

  it("is refused at the start, with the command that mends it: another user's", function()
    if uv.getuid() ~= 0 then return pending "only root can give files away" end
    for _, path in ipairs { key, keys } do
      support.run { "chown", "65534", path }
      assert_mended "belongs to another user %(65534%), who c.* mend it with: chown 0 "
    end
  end)

  it("is refused by the command, too", function()
    support.run { "chmod", "666", keys }
    local done = support.run { support.korv, "serve", "--check", "--host-key", key, "--authorized-keys", keys,
      support.root .. "/spec/data/app.lua" }
    assert.equal(1, done.code)
    assert.matches("others can write this file %(mode 0666%).*mend it with: chmod go%-w " .. pair.literal(keys), done.stderr)
  end)

  it("changes nothing at a reload", function()
    local server = serve(options())
    server.host_key = support.key "host"
    local fingerprint = server.host_keys[1].fingerprint
    authorized("guarded_keys", public "bob")
    support.run { "chmod", "666", keys }
    support.run { "cp", support.key "next_host", key }
    support.run { "chmod", "644", key }
    server:reload_keys()
    logged("the authorized keys stay as they were: " .. keys .. ": others can write this file (mode 0666)",
      "the host keys stay as they were: host key " .. key .. ": others can read this private key (mode 0644)")
    assert_let_in(server, { name = "ann" })
    assert_refused(server, { name = "bob" })
    assert.equal(fingerprint, server.host_keys[1].fingerprint)
    support.run { "chmod", "600", key, keys }
    server:reload_keys()
    server.host_key = support.key "next_host"
    assert_let_in(server, { name = "bob" })
    assert_refused(server, { name = "ann" })
  end)
end)
