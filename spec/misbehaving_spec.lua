--- Clients that do what no client does, each against a hole of the library that is closed on our side, or a promise of SSH's that is the
-- library's to keep. They are the cases of spec/peers/rude.py.

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local GCM, CHACHA = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"
local AUTH_FAILURE, AUTH_SUCCESS = 51, 52
local LOGIN_TIMEOUT = 1 -- seconds

local FULL = os.getenv "KORV_FULL" ~= nil

local server

local function serve(options)
  local all = { host = "127.0.0.1", port = 0, host_keys = { support.key "host" }, login_timeout = LOGIN_TIMEOUT * support.patience }
  for name, value in pairs(options) do all[name] = value end
  local made = assert(korv.server(all))
  made:get("/hello", function() return 200, "hello" end)
  made:get("/peer", function(request) return 200, request.peer end)
  made:get("/long", function() korv.sleep(60) return 200 end)
  return pair.listen(made)
end

-- It lets in whom it is asked about: what is refused is refused below.
local function serve_anybody(options)
  options.authorize = function(key) return { name = key.type } end
  return serve(options)
end

local function start(port, case, ...)
  local argv = { support.python, support.root .. "/spec/peers/rude.py", tostring(port), case, ... }
  return support.start(argv, { stdin = true, env = { RUDE_PATIENCE = 10 * support.patience } })
end

local function result(process)
  process:close_stdin()
  process:wait(60)
  if process.code ~= 0 then error(process:describe "failed", 3) end
  return assert(korv.json.decode(process.stdout))
end

local function rude(case, ...) return result(start(server.port, case, ...)) end

local function key() return support.key "client" end

local function assert_serves()
  local client = assert(pair.dial(server))
  assert.equal(200, client:get("/hello").code)
  client:close()
end

local function begin() pair.logged = {} end

describe("a client that is rude after its log-in", function()
  setup(function()
    pair.begin()
    server = serve_anybody { max_channel_in_flight = 2 }
  end)
  before_each(begin)
  after_each(assert_serves)
  teardown(pair.finish)

  it("is none where it is polite", function()
    for _, cipher in ipairs { GCM, CHACHA } do assert.matches('"code":200', rude("hello", key(), cipher).answer) end
  end)

  for _, way in ipairs { "session", "direct-tcpip" } do
    it("with tiny packets is put out before anything is written: " .. way, function()
      for _, most in ipairs { "1", "9", "10", "11", "100", "1023" } do
        begin()
        assert.same({ lost = true }, rude("tiny_packets", key(), way, most))
        pair.wait_for_log("warn .*was put out: the peer announced packets of at most " .. most .. " bytes")
      end
      assert.matches('"code":200', rude("tiny_packets", key(), way, "1024").answer)
    end)
  end

  for _, way in ipairs { "session", "direct-tcpip", "none" } do
    for _, stream in ipairs { "stdout", "stderr" } do
      it(("with data past the window is put out: way %s, %s"):format(way, stream), function()
        local before = uv.resident_set_memory()
        local sent = rude("past_window", key(), way, stream).sent
        assert.is_true(sent < 8 << 20, sent) -- it was ended on the way: the sockets hold some
        pair.wait_for_log "warn .*was put out: the peer sent data past the channel's window"
        assert.is_true(support.patience > 1 or uv.resident_set_memory() - before < 16 << 20)
      end)
    end
  end

  for _, what in ipairs { "eof", "broken" } do
    it("that goes on behind its last message costs no memory while a request runs: " .. what, function()
      local before = uv.resident_set_memory()
      rude("after_the_end", key(), what)
      pair.wait_for_log "warn .*was put out: the peer sent data past the channel's window"
      assert.is_true(support.patience > 1 or uv.resident_set_memory() - before < 16 << 20)
    end)
  end

  for _, what in ipairs { "global request", "channel request", "open", "unknown" } do
    it("that reads none of SSH's own answers is put out: " .. what, function()
      assert.is_true(rude("deaf", key(), what).sent < 400000)
      pair.wait_for_log "warn .*was put out: the peer does not read what it asks for"
    end)
  end

  it("with key exchanges for little data is put out", function()
    assert.same({ done = 60, lost = true }, rude("exchanges", key(), "in", "100"))
    pair.wait_for_log "warn .*was put out: more than 60 key exchanges for little data"
  end)

  it("with key exchanges that it never ends is put out", function()
    assert.is_true(rude("half_exchanges", key()).sent < 1000)
  end)

  it("that goes on to log in stays who it was", function()
    local told = rude("names", key(), support.key "other")
    assert.same({ "second", support.fingerprint(key()) }, { told.before.login, told.before.fingerprint })
    if told.after ~= korv.null then assert.same(told.before, told.after) end
  end)
end)

describe("a client that is rude before its log-in", function()
  setup(function()
    pair.begin()
    server = serve_anybody {}
  end)
  before_each(begin)
  after_each(assert_serves)
  teardown(pair.finish)

  for _, step in ipairs { "at once", "begun", "offered", "badly signed", "said so itself" } do
    it("gets no channel, and nothing of the app's runs: " .. step, function()
      local before = server:counters().requests
      for _, kind in ipairs(rude("unsigned", key(), step).kinds) do assert.is_true(kind < 90, kind) end
      assert.equal(before, server:counters().requests)
      pair.wait_for_log "no log%-in from 127%.0%.0%.1"
    end)
  end

  for case, list in pairs { bad_signatures = { "3" }, unreadable_keys = {}, idle = { "at once" } } do
    it("is put out by the clock, where the library says nothing: " .. case, function()
      local began = uv.hrtime()
      local kinds = rude(case, key(), table.unpack(list)).kinds
      for _, kind in ipairs(kinds) do assert.are_not.equal(AUTH_SUCCESS, kind) end
      pair.wait_for_log "no log%-in within"
      assert.is_true((uv.hrtime() - began) / 1e9 > LOGIN_TIMEOUT)
    end)
  end

  it("is put out by the clock behind the key exchange, too", function()
    rude("idle", key(), "begun")
    pair.wait_for_log "no log%-in within"
  end)

  it("is put out by what it has sent, where that is signatures without end", function()
    assert.is_true(rude("bad_signatures", key(), "0").sent < 10000)
    pair.wait_for_log "36 packets without a log%-in"
  end)

  it("is put out by what it has sent, where that is nothing at all", function()
    assert.is_true(rude("chatter", key()).sent < 32 << 20)
    pair.wait_for_log "36 packets without a log%-in"
  end)

  it("exchanges no keys a second time", function()
    assert.same({ done = 1, lost = true }, rude("exchanges", key(), "out", "100"))
  end)

  for _, kind in ipairs { "dsa", "certificate", "rsa-1024", "rsa-sha1" } do
    for _, offered in ipairs { "offered", "signed at once" } do
      it(("does not get in with a key that is sound but %s, %s, whatever Lua would say"):format(kind, offered), function()
        local told = rude("key", key(), kind, offered)
        assert.is_true(told.lost or told.reply == AUTH_FAILURE)
      end)
    end
  end

  it("gets in with others, offered or not", function()
    for _, kind in ipairs { "ed25519", "rsa-sha2-256", "token" } do
      for _, offered in ipairs { "offered", "signed at once" } do
        assert.same({ reply = AUTH_SUCCESS }, rude("key", key(), kind, offered))
      end
    end
  end)
end)

describe("a bit that was turned on the way", function()
  setup(function()
    pair.begin()
    server = serve_anybody {}
  end)
  teardown(pair.finish)

  math.randomseed(tonumber(os.getenv "KORV_SEED") or 20260714)

  -- Where in the packet: the length, what follows it, anywhere, the tag.
  local PLACES = { "0", "0.03", "", "0.999" }

  for _, cipher in ipairs { GCM, CHACHA } do
    for where, packets in pairs { handshake = 3, ["log-in"] = 2, channel = 3 } do
      it(("ends the connection, and what it was in is not heeded: %s, %s"):format(cipher, where), function()
        local running = {}
        for number = 0, packets - 1 do
          for round = 1, FULL and 40 or 4 do
            local place = PLACES[(round - 1) % 4 + 1]
            if place == "" then place = ("%.4f"):format(math.random()) end
            running[#running + 1] = start(server.port, "flip", key(), cipher, where, tostring(number), place, tostring(math.random(0, 7)))
            if #running > 4 then result(running[#running - 4]) end -- so many at once
          end
        end
        for _, one in ipairs(running) do
          local told = result(one)
          local words = table.concat(one.argv, " ")
          local before = where == "channel" and one.argv[#one.argv - 2] == "2" and 1 or 0 -- what was asked until then
          assert.same({ lost = true, answers = before, trouble = told.trouble }, told, words)
        end
      end)
    end
  end
end)

describe("a crowd that does not log in", function()
  before_each(function()
    pair.begin()
    begin()
  end)
  after_each(pair.finish)

  local function crowd(source, count)
    local process = start(server.port, "crowd", source, tostring(count))
    local line = process:line(30)
    if not line then error(process:describe "said nothing") end
    return korv.json.decode(line).taken, process
  end

  local function ssh(address)
    return support.run(support.ssh(server, { key = key(), "-b", address }, "-s", "127.0.0.1", "korv"),
      { stdin = '{"id":1,"verb":"GET","resource":"/hello"}\n' })
  end

  it("of 500 from one address keeps nobody from another one out", function()
    server = serve_anybody { login_timeout = 60 }
    local taken, process = crowd("127.0.0.1", 500)
    assert.equal(64, taken)
    local began = uv.hrtime()
    assert.matches('"code":200', ssh("127.0.0.2").stdout)
    local seconds = (uv.hrtime() - began) / 1e9
    assert.is_true(seconds < support.patience, ("%.2f s"):format(seconds))
    assert.equal("", ssh("127.0.0.1").stdout)
    pair.wait_for_log "warn refused a connection from 127%.0%.0%.1: max_unauthenticated_per_address is reached %(%d+ refused so"
    process:kill()
    pair.wait_for(function() return server:counters().connections == 0 end)
    assert.matches('"code":200', ssh("127.0.0.1").stdout)
  end)

  it("from many addresses is limited in all, and who is in stays in", function()
    server = serve_anybody { login_timeout = 60, max_unauthenticated = 10, max_unauthenticated_per_address = 4 }
    local client = assert(pair.dial(server))
    local counts, processes = {}, {}
    for i = 1, 4 do counts[i], processes[i] = crowd("127.0.0." .. i, 6) end
    assert.same({ 4, 4, 2, 0 }, counts)
    pair.wait_for_log "127%.0%.0%.1: max_unauthenticated_per_address is reached"
    pair.wait_for_log "127%.0%.0%.[34]: max_unauthenticated is reached"
    assert.equal(200, client:get("/hello").code)
    for _, process in ipairs(processes) do process:kill() end
    pair.wait_for(function() return server:counters().connections == 1 end)
    assert.matches('"code":200', ssh("127.0.0.9").stdout)
  end)

  it("of those who have logged in takes no place from others", function()
    server = serve_anybody { max_unauthenticated = 2, max_unauthenticated_per_address = 1 }
    for _ = 1, 5 do assert(pair.dial(server)) end
    assert_serves()
  end)
end)
