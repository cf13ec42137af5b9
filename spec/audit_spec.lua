--- What ssh-audit finds in a server's algorithms, and how long their keys are used.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local waiting = require "spec.waiting"

-- Its version in Debian 12 is older than strict key exchange, which is no algorithm but a sign that the server has it.
local UNKNOWN = "(kex) kex-strict-s-v00@openssh.com   -- [warn] unknown algorithm"

describe("ssh-audit", function()
  setup(pair.begin)
  teardown(pair.finish)

  local function audit(options)
    local server = pair.listen(pair.new_server(options))
    local done = support.run({ "ssh-audit", "-n", "-p", tostring(server.port), "127.0.0.1" }, { timeout = 60 })
    assert.matches("%(gen%) banner: SSH%-2%.0%-korv\n", done.stdout, nil, nil, done:describe "did not audit")
    assert.equal("", done.stderr)
    return done.stdout
  end

  local function algorithms(report, kind)
    local list = {}
    for name in report:gmatch("%(" .. kind .. "%) (%S+)") do list[#list + 1] = name end
    return list
  end

  for _, ciphers in ipairs { "modern", "compatible" } do
    it("has nothing to say against a server: ciphers = " .. ciphers, function()
      local report = audit { ciphers = ciphers }
      local complaints = {}
      for line in report:gmatch "[^\n]+" do
        if line:find("[warn]", 1, true) or line:find("[fail]", 1, true) then complaints[#complaints + 1] = line end
      end
      assert.same({ UNKNOWN }, complaints)
      assert.is_falsy(report:find("CVE", 1, true))
      local expected = { "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com" }
      if ciphers == "compatible" then expected[4] = "aes256-ctr" end
      assert.same(expected, algorithms(report, "enc"))
      assert.same({ "ssh-ed25519" }, algorithms(report, "key"))
      assert.matches("compression: disabled", report)
    end)
  end

  it("finds no SHA-1 with an RSA host key", function()
    local report = audit { host_keys = { pair.make_key("rsa_host", "-t", "rsa", "-b", "3072", "-N", "") } }
    assert.same({ "rsa-sha2-512", "rsa-sha2-256" }, algorithms(report, "key"))
    assert.is_falsy(report:find("[fail]", 1, true))
  end)

  it("ciphers: who has no newer one than AES-CTR is served where that is said, and only then", function()
    for ciphers, code in pairs { modern = 255, compatible = 0 } do
      local server = pair.new_server { ciphers = ciphers }
      server:get("/hello", function() return 200, "hello" end)
      pair.listen(server)
      local function ssh(mac) return support.ssh(server, { "-c", "aes256-ctr", "-m", mac }, "-s", "127.0.0.1", "korv") end
      for _, mac in ipairs { "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com" } do
        local done = support.run(ssh(mac), { stdin = '{"id":1,"verb":"GET","resource":"/hello"}\n' })
        assert.equal(code, done.code, done.stderr)
        assert.equal(code == 0, done.stdout:find '"code":200' ~= nil)
      end
      local old = support.run(ssh "hmac-sha2-256")
      assert.same({ 255, "" }, { old.code, old.stdout })
      -- Of libssh's own list, or where that was not written any more, in a disconnect message of ours.
      local why = code == 0 and "no matching MAC found" or "no matching cipher found"
      assert.is_truthy(old.stderr:find(why, 1, true) or old.stderr:find("no algorithm was in common", 1, true), old.stderr)
    end
  end)

  it("who has no algorithm in common with a server hears which it has, each time", function()
    local server = pair.listen(pair.new_server {})
    for _ = 1, 20 do
      local done = support.run(support.ssh(server, { "-c", "aes256-cbc" }, "127.0.0.1", "GET", "/hello"))
      assert.matches("^[^\n]* no [^\n]*aes128%-gcm@openssh.com,aes256%-gcm", done.stderr)
    end
  end)

  -- Its version and its list of algorithms in one segment, before the server has said anything; the server's loop stands still meanwhile.
  it("who says at once that it has none in common is in the log", function()
    local server = pair.listen(pair.new_server {})
    local lists = {}
    for i, list in ipairs { "curve25519-sha256", "ssh-ed25519", "no-cipher", "no-cipher", "no-mac", "no-mac", "none", "none", "", "" } do
      lists[i] = (">s4"):pack(list)
    end
    local payload = "\20" .. ("c"):rep(16) .. table.concat(lists) .. ("\0"):rep(5)
    local padding = 8 - (5 + #payload) % 8 + 8
    local packet = (">I4B"):pack(1 + #payload + padding, padding) .. payload .. ("\0"):rep(padding)
    local bytes = ("SSH-2.0-eager\r\n" .. packet):gsub(".", function(c) return ("%02x"):format(c:byte()) end)
    local program = ("import socket; socket.create_connection(('127.0.0.1', %d)).sendall(bytes.fromhex('%s'))"):format(server.port, bytes)
    assert.is_true(os.execute(('%s -c "%s"'):format(support.python, program)))
    pair.wait_for_log "no log%-in from 127.0.0.1: the handshake failed: what came was no SSH, or no algorithm was in common"
  end)

  it("keys are exchanged anew after a GiB, with a cipher and a client that would not do it by themselves", function()
    if not os.getenv "KORV_FULL" then return pending "a GiB is sent in a full run only" end
    local server, body = pair.new_server {}, ("x"):rep(16000000)
    server:get("/large", function() return 200, body end)
    pair.listen(server)
    local requests = ('{"id":1,"verb":"GET","resource":"/large"}\n'):rep(75)
    local ssh = support.ssh(server, { "-v", "-c", "aes128-gcm@openssh.com", "-o", "RekeyLimit=64G none" }, "-s", "127.0.0.1", "korv")
    local done = support.run({ "sh", "-c", '"$@" | wc -c', "sh", table.unpack(ssh) }, { stdin = requests, timeout = 300 })
    assert.is_true(tonumber(done.stdout) > 75 * 16000000, done.stderr)
    local _, exchanges = done.stderr:gsub("SSH2_MSG_KEXINIT received", "")
    assert.equal(2, exchanges)
  end)

  -- libfaketime moves the server's clocks.
  it("keys are exchanged anew after an hour, and every request is answered", function()
    local clock = support.write("clock", "+0")
    local server = waiting.serve(nil, { before = { "env", "FAKETIME_NO_CACHE=1", "FAKETIME_TIMESTAMP_FILE=" .. clock, "sh", "-c",
      'LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1) exec "$@"', "sh" } })
    local client = support.start(support.ssh(server, { "-v" }, "-s", "127.0.0.1", "korv"), { stdin = true })
    local function exchanges() return (select(2, client.stderr:gsub("SSH2_MSG_KEXINIT received", ""))) end
    for hour = 0, 2 do
      assert(os.rename(support.write("later", "+" .. hour * 3700), clock))
      for id = 1, 10 do
        client:write(('{"id":%d,"verb":"GET","resource":"/korv/health"}\n'):format(id))
        assert.matches('"request_id":' .. id .. ',"code":200', client:line(), nil, true)
      end
      assert.is_true(support.wait_for(function() return exchanges() >= hour + 1 end))
      assert.equal(hour + 1, exchanges())
    end
    client:close_stdin()
    assert.equal(0, client:wait().code)
  end)

  it("ciphers is modern or compatible", function()
    pair.must_raise("korv%.server: ciphers must be 'modern' or 'compatible', not 'old'", function() korv.server { ciphers = "old" } end)
  end)
end)
