--- Who is let in, which host is trusted, and what a server's options limit: with a server and a client in this process.

local pair = require "spec.pair"
local korv = require "korv"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local uv = require "luv"

local dial, listen, new_server = pair.dial, pair.listen, pair.new_server

local function add_endpoints(server)
  server:get("/hello", function() return 200, "hello" end)
  server:store("/echo", function(request) return 200, request.body end)
  return server
end

local HELLO = raw_channel.text("1", "GET", "/hello")

describe("access", function()
  local server

  setup(function()
    pair.begin()
    server = listen(add_endpoints(new_server()))
  end)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  local function assert_has(message, ...)
    for _, part in ipairs { ... } do assert.is_truthy(message:find(part, 1, true), ("%q lacks %q"):format(message, part)) end
  end

  describe("to a host", function()
    it("whose key is unknown is refused, and the message has its fingerprint and what to do", function()
      local path = support.path "not_there_yet"
      local none, message, name = dial(server, { known_hosts = path })
      assert.same({ nil, "EHOSTKEY" }, { none, name })
      assert_has(message, path, server.host_keys[1].fingerprint, "accept_new")
      assert.is_nil(uv.fs_stat(path))
    end)

    it("accept_new adds its key to a file that was not there, and it is known from then on", function()
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

    it("accept_new where nothing can be written is an error that names the file", function()
      local path = support.write("no_folder", "") .. "/known_hosts"
      local none, message = dial(server, { known_hosts = path, accept_new = true })
      assert.is_nil(none)
      assert_has(message, path)
    end)

    it("whose key has changed is refused loudly, and the old one never replaced", function()
      local other = support.read(support.key "another_host" .. ".pub"):match "^%S+ %S+"
      local line = ("[127.0.0.1]:%d %s\n"):format(server.port, other)
      local path = support.write("changed", line)
      for _, accept_new in ipairs { false, true } do
        local none, message, name = dial(server, { known_hosts = path, accept_new = accept_new })
        assert.same({ nil, "EHOSTKEYCHANGED" }, { none, name })
        assert_has(message, "HAS CHANGED", path, server.host_keys[1].fingerprint)
        assert.equal(line, support.read(path))
      end
    end)

    it("whose name is hashed in known_hosts, as Debian's ssh writes it, is known", function()
      local path = support.known_hosts(server, "hashed")
      assert(support.run({ "ssh-keygen", "-q", "-H", "-f", path }).code == 0)
      assert.matches("^|1|", support.read(path))
      assert(dial(server, { known_hosts = path }))
    end)

    it("whose key is @revoked in known_hosts is refused, also where another line has it", function()
      local key = support.read(server.host_key .. ".pub"):match "^%S+ %S+"
      local path = support.write("revoked", ("@revoked * %s\n[127.0.0.1]:%d %s\n"):format(key, server.port, key))
      assert.is_nil((dial(server, { known_hosts = path })))
      assert.is_nil((dial(server, { known_hosts = path, accept_new = true })))
    end)

    it("known_hosts = /dev/null knows none, and with accept_new takes any", function()
      assert.equal("EHOSTKEY", select(3, dial(server, { known_hosts = "/dev/null" })))
      assert(dial(server, { known_hosts = "/dev/null", accept_new = true }))
    end)

    it("known_hosts = false takes any key", function()
      assert.equal(200, assert(dial(server, { known_hosts = false })):get("/hello").code)
    end)

    it("a known_hosts that cannot be read is an error that names it", function()
      local none, message = dial(server, { known_hosts = support.path "." })
      assert.is_nil(none)
      assert_has(message, support.path ".", "read")
    end)

    it("a host key that is missing is made, private, and never replaced", function()
      local path = support.path "made_host_key"
      local first = new_server({ host_keys = { path } }).host_keys[1].fingerprint
      assert.equal("600", ("%o"):format(uv.fs_stat(path).mode & 511))
      assert.equal(first, support.fingerprint(path))
      assert.equal(first, new_server({ host_keys = { path } }).host_keys[1].fingerprint)
    end)
  end)

  describe("with a key", function()
    it("that is not authorized is EAUTH, with its fingerprint and what to do", function()
      local key = support.key "stranger"
      local none, message, name = dial(server, { client_keys = { key } })
      assert.same({ nil, "EAUTH" }, { none, name })
      assert_has(message, support.fingerprint(key), "authorized_keys")
      pair.wait_for_log("refused the key " .. pair.literal(support.fingerprint(key)))
    end)

    it("any of several may be the one", function()
      assert(dial(server, { client_keys = { support.key "stranger", support.key "client" } }))
    end)

    it("an empty list of keys is refused with a message that names it", function()
      local ok, none, message = pcall(dial, server, { client_keys = {} })
      assert.is_falsy(ok and none)
      assert_has(ok and message or none, "client_keys")
    end)

    it("that is encrypted takes its passphrase, and no other", function()
      local key = pair.make_key("encrypted", "-t", "ed25519", "-N", "sesame", "-a", "1")
      local own = listen(add_endpoints(new_server { authorized_client_keys = key .. ".pub" }))
      assert.equal(200, assert(dial(own, { client_keys = { key }, passphrase = "sesame" })):get("/hello").code)
      for _, wrong in ipairs { "Sesame", false } do
        local none, message = dial(own, { client_keys = { key }, passphrase = wrong or nil })
        assert.is_nil(none)
        assert_has(message, key, "passphrase")
      end
    end)

    it("a host's that is encrypted takes its passphrase", function()
      local key = pair.make_key("encrypted_host", "-t", "ed25519", "-N", "sesame", "-a", "1")
      assert(dial(listen(new_server { host_keys = { key }, passphrase = "sesame" })))
      local none, message = korv.server { host_keys = { key }, authorized_client_keys = support.key "client" .. ".pub" }
      assert.is_nil(none)
      assert_has(message, key, "passphrase")
    end)

    for _, kind in ipairs { "ed25519", "ecdsa", "rsa" } do
      it("of ~/.ssh is tried where none is named: id_" .. kind, function()
        local home = support.path("home_" .. kind)
        support.run { "mkdir", "-p", home .. "/.ssh" }
        local key = pair.make_key(("home_%s/.ssh/id_%s"):format(kind, kind), "-t", kind, "-N", "")
        local other = pair.make_key("host_" .. kind, "-t", kind, "-N", "")
        local own = listen(add_endpoints(new_server { authorized_client_keys = key .. ".pub", host_keys = { other } }))
        local done = pair.program([[
          local client = assert(korv.client { host = "127.0.0.1", port = tonumber((...)), known_hosts = false })
          print(client:get("/hello").body)]], { tostring(own.port) }, { env = { HOME = home } })
        assert.same({ "hello\n", "" }, { done.stdout, done.stderr })
      end)
    end

    it("~ is what the user database says where HOME says nothing, as in a service", function()
      local home = support.run({ "sh", "-c", "getent passwd $(id -u) | cut -d: -f6" }).stdout:gsub("\n$", "")
      local done = pair.program [[require "luv".os_unsetenv "HOME" io.write(require "korv.identity".home "id_rsa")]]
      assert.same({ home .. "/.ssh/id_rsa", "" }, { done.stdout, done.stderr })
    end)

    it("is asked for where ~/.ssh has none", function()
      local home = support.path "empty_home"
      local done = pair.program([[print(select(2, korv.client { host = "127.0.0.1" }))]], {}, { env = { HOME = home } })
      assert_has(done.stdout, "no key in " .. home .. "/.ssh", "client_keys")
      assert.same({ 0, 0 }, { done.code, done.signal })
    end)
  end)

  describe("options", function()
    local key = function() return { support.key "client" } end
    for what, misuse in pairs {
      ["unknown option 'hots'"] = function() korv.client { hots = "localhost" } end,
      ["port must be a number, not a string"] = function() korv.client { port = "8022" } end,
      ["port must be an integer from 1 to 65535"] = function() korv.client { port = 65536, client_keys = key() } end,
      ["known_hosts must be a string or false"] = function() korv.client { known_hosts = true } end,
      ["client_keys must be a list of files"] = function() korv.client { client_keys = "client_key" } end,
      ["client_keys%[1%] must be a string"] = function() korv.client { client_keys = { {} } } end,
      ["timeout must be a positive number"] = function() korv.client { timeout = 0, client_keys = key() } end,
      ["options must be a table"] = function() korv.client() end,
    } do
      it("of a client: " .. what, function() pair.must_raise("korv%.client: .*" .. what, misuse) end)
    end

    local function make(options)
      local own = korv.server(options)
      return own and own:listen()
    end
    for what, options in pairs {
      ["unknown option 'host_key'"] = { host_key = "key" },
      ["host_keys must be a list of files"] = { host_keys = "key" },
      ["host_keys must name at least one file"] = { host_keys = {} },
      ["port must be an integer from 0 to 65535"] = { port = -1 },
      ["cpu_limit must be a number of seconds from 0 on, not %-1"] = { cpu_limit = -1 },
      ["tracebacks must be a boolean, not a string"] = { tracebacks = "no" },
      ["max_channels must be an integer"] = { max_channels = 0 },
      ["json must have the functions encode and decode"] = { json = {} },
      ["options must be a table"] = 8022,
    } do
      it("of a server: " .. what, function()
        if type(options) == "table" then
          options.authorized_client_keys = support.key "client" .. ".pub"
          options.host_keys = options.host_keys or { support.key "host" }
          options.port = options.port or 0
        end
        pair.must_raise("korv%.server: .*" .. what, function() assert(make(options)):stop() end)
      end)
    end

    it("of a server are its own, whatever becomes of the table", function()
      local options = { host = "127.0.0.1", port = 0, host_keys = { support.key "host" }, tracebacks = false, ways = { shell = false },
        authorized_client_keys = support.key "client" .. ".pub" }
      local own = assert(korv.server(options))
      options.host, options.port, options.ways.subsystem, options.introspection = "192.0.2.1", -1, false, false
      listen(add_endpoints(own))
      assert.equal(200, assert(dial(own)):get("/hello").code)
    end)

    it("max_packet_size, which the first korv needs, is accepted by both", function()
      local own = listen(add_endpoints(new_server { max_packet_size = 2 ^ 31 }))
      assert.equal(200, assert(dial(own, { max_packet_size = 2 ^ 31 })):get("/hello").code)
    end)
  end)

  describe("limits of the server:", function()
    it("past max_message_bytes it is a 413, which the client's log tells, and the connection goes on", function()
      local own = assert(dial(listen(add_endpoints(new_server { max_message_bytes = 2048 }))))
      local response, _, name = own:call("STORE", "/echo", ("x"):rep(4000), { timeout = 0.5 })
      assert.same({ nil, "ETIMEDOUT" }, { response, name })
      pair.wait_for_log "warn .*413"
      assert.equal(200, own:get("/hello").code)
    end)

    it("past max_response_bytes an answer is a 500", function()
      local own = assert(dial(listen(add_endpoints(new_server { max_response_bytes = 2048 }))))
      assert.equal(500, own:store("/echo", ("x"):rep(4000)).code)
    end)

    it("past max_depth it is a 400", function()
      local peer = assert(raw_channel.connect(listen(add_endpoints(new_server { max_depth = 4 }))))
      assert.equal(400, peer:open("subsystem:korv"):ask(raw_channel.text("1", "STORE", "/echo", "[[[[]]]]")).code)
    end)

    it("past max_channels one more is refused, until another is closed", function()
      local peer = assert(raw_channel.connect(listen(add_endpoints(new_server { max_channels = 2 }))))
      local first, second = peer:open "subsystem:korv", peer:open "tcpip"
      assert.is_nil((peer:try_open "subsystem:korv"))
      assert.equal(200, second:ask(HELLO).code)
      first:finish()
      assert.equal(200, peer:open("subsystem:korv"):ask(HELLO).code)
    end)

    it("past max_connections one more is refused, until another is closed", function()
      local own = listen(add_endpoints(new_server { max_connections = 1 }))
      local first = assert(dial(own))
      local none, message = dial(own)
      assert.is_nil(none)
      assert.matches("127%.0%.0%.1 port %d+", message)
      first:close()
      local second
      for _ = 1, 100 do
        second = second or dial(own)
      end
      assert.equal(200, second:get("/hello").code)
    end)

    it("past login_timeout who has not logged in is put out", function()
      local own = listen(new_server { login_timeout = 0.2 })
      local tcp, ended = uv.new_tcp(), nil
      tcp:connect("127.0.0.1", own.port, function()
        tcp:read_start(function(_, data) ended = data == nil end)
      end)
      pair.wait_for(function() return ended end)
      tcp:close()
      pair.wait_for_log "no log%-in within 0%.2 s"
    end)

    it("past max_auth_attempts who tries more keys is put out, and told so", function()
      local own = listen(new_server { max_auth_attempts = 3 })
      local keys = {}
      for i = 1, 5 do keys[i] = support.key("stranger" .. i) end
      local none, message, name = dial(own, { client_keys = keys })
      assert.same({ nil, "EAUTH" }, { none, name })
      assert.matches("127%.0%.0%.1 port %d+.*too many keys", message)
      pair.wait_for_log "3 attempts to log in"
    end)
  end)
end)
