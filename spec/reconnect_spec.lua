--- Connections that die: how soon that is noticed, what becomes of the calls on them, and how a client comes back.

local cut_proxy = require "spec.peers.cut_proxy"
local korv = require "korv"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local KEEPALIVE = 0.3

local function sleep(seconds) pair.in_task(function() korv.sleep(seconds) end) end

local function signal(process, name) support.run { "kill", "-" .. name, tostring(process.pid) } end

-- A call with a callback: what it ended with, once it has, in the list that is returned.
local function begin(client, verb, resource, body, options)
  local results = {}
  options = options or {}
  options.callback = function(...)
    local told = table.pack(...)
    for i = 0, told.n do results[i] = told[i] end
    results.ended = true
  end
  client:call(verb, resource, body, options)
  return results
end

local function ended(...)
  local list = { ... }
  return function()
    for _, results in ipairs(list) do
      if not results.ended then return false end
    end
    return true
  end
end

describe("a client with reconnect", function()
  local server, client

  local function restart(options, process)
    local all = { port = server.port }
    for name, value in pairs(options or {}) do all[name] = value end
    server = waiting.serve(all, process)
    return server
  end

  setup(pair.begin)
  before_each(function()
    server = waiting.serve()
    client = assert(pair.dial(server, { reconnect = true }))
  end)
  after_each(function()
    client:close()
    waiting.kill(server)
  end)
  teardown(pair.finish)

  it("finishes GETs that were under way when the server was killed", function()
    local calls = {}
    for i = 1, 10 do calls[i] = begin(client, "GET", "/sleep?s=0.2") end
    assert.equal("hello", client:get("/hello").body)
    waiting.kill(server)
    restart()
    pair.wait_for(ended(table.unpack(calls)))
    for _, call in ipairs(calls) do assert.equal(200, call[1] and call[1].code, call[2]) end
  end)

  for _, verb in ipairs { "STORE", "UPDATE", "DELETE" } do
    it("ends a " .. verb .. " that was under way with a message that it may have been run", function()
      local call = begin(client, verb, "/sleep?s=30")
      assert.equal("hello", client:get("/hello").body)
      waiting.kill(server)
      pair.wait_for(ended(call))
      assert.is_nil(call[1])
      assert.matches("^" .. verb .. " /sleep%?s=30: .*may have been run", call[2])
      assert.equal("ECONNRESET", call[3])
      restart()
      assert.equal("hello", client:get("/hello").body)
    end)
  end

  it("sends what was called while there was no server, whatever its verb", function()
    waiting.kill(server)
    pair.wait_for(function() return not client.transport end)
    local calls = { begin(client, "GET", "/hello"), begin(client, "STORE", "/echo", "stored"), begin(client, "GET", "/sleep?s=0.01") }
    sleep(0.2)
    assert.is_nil(calls[1].ended or calls[2].ended)
    restart()
    pair.wait_for(ended(table.unpack(calls)))
    assert.same({ "hello", "stored", 200 }, { calls[1][1].body, calls[2][1].body, calls[3][1].code })
  end)

  it("sends a body as it was when the call was made", function()
    waiting.kill(server)
    pair.wait_for(function() return not client.transport end)
    local body, list = { n = 1, of = { 2.0 } }, korv.array {}
    local calls = { begin(client, "STORE", "/echo", body), begin(client, "STORE", "/echo", list), begin(client, "STORE", "/echo", print) }
    body.n, body.of[1], list[1] = 2, "x", "y"
    restart()
    pair.wait_for(ended(table.unpack(calls)))
    assert.same({ n = 1, of = { 2.0 } }, calls[1][1].body)
    assert.equal("[]", korv.json.encode(calls[2][1].body))
    assert.equal("EJSON", calls[3][3])
  end)

  it("comes back to where it was, whatever has become of the table of its options", function()
    local options = { host = "127.0.0.1", port = server.port, client_keys = { support.key "client" }, reconnect = true,
      known_hosts = support.known_hosts(server, "known_" .. server.port) }
    local own <close> = assert(korv.client(options))
    options.port, options.reconnect, options.client_keys[1] = 1, nil, "none"
    waiting.kill(server)
    restart()
    assert.equal("hello", assert(own:get "/hello").body)
  end)

  it("waits in a coroutine too, and comes back again and again", function()
    for _ = 1, 3 do
      waiting.kill(server)
      restart()
      assert.equal("hello", assert(pair.in_task(function() return client:get "/hello" end)).body)
    end
  end)

  it("ends a call at its timeout, though nobody comes back", function()
    waiting.kill(server)
    local call = begin(client, "GET", "/hello", nil, { timeout = 0.3 })
    pair.wait_for(ended(call))
    assert.same({ nil, "GET /hello: no answer within 0.3 s", "ETIMEDOUT" }, { call[1], call[2], call[3] })
  end)

  it("ends its calls at once when it is closed", function()
    waiting.kill(server)
    local call = begin(client, "GET", "/hello")
    sleep(0.1)
    client:close()
    pair.wait_for(ended(call))
    assert.equal("ECLOSED", call[3])
  end)

  it("does not try again where its key is no longer let in", function()
    waiting.kill(server)
    restart({}, { keys = { "stranger" } })
    local response, message, name = client:get "/hello"
    assert.is_nil(response)
    assert.equal("EAUTH", name, message)
    local another = begin(client, "STORE", "/echo", "x")
    pair.wait_for(ended(another))
    assert.equal("EAUTH", another[3])
  end)

  it("does not try again where the host's key has changed", function()
    waiting.kill(server)
    local host = support.key "another_host"
    restart { host_keys = { host } }
    assert.equal("EHOSTKEYCHANGED", select(3, client:get "/hello"))
  end)

  it("without reconnect gives every call back", function()
    local plain = assert(pair.dial(server))
    local call = begin(plain, "GET", "/sleep?s=30")
    plain:get "/hello"
    waiting.kill(server)
    pair.wait_for(ended(call))
    assert.equal("ECONNRESET", call[3])
    restart()
    assert.equal("ECONNRESET", select(3, plain:get "/hello"))
  end)

  describe("comes back with pauses:", function()
    -- A listener in the server's place that closes every connection; returns how many there were.
    local function door()
      local tcp, count = uv.new_tcp(), 0
      assert(tcp:bind("127.0.0.1", server.port))
      tcp:listen(64, function()
        local one = uv.new_tcp()
        tcp:accept(one)
        one:close()
        count = count + 1
      end)
      return function()
        if not tcp:is_closing() then tcp:close() end
        return count
      end
    end

    it("to a server that does not let it in", function()
      waiting.kill(server)
      local close = door()
      local call = begin(client, "GET", "/hello", nil, { timeout = 1.5 })
      pair.wait_for(ended(call))
      local count = close()
      assert.is_true(count >= 3 and count <= 12, count .. " connections in 1.5 s")
    end)

    it("however many calls are made meanwhile", function()
      waiting.kill(server)
      local close, calls = door(), {}
      pair.in_task(function()
        for i = 1, 100 do
          calls[i] = begin(client, "GET", "/hello", nil, { timeout = 0.2 })
          korv.sleep(0.01)
        end
      end)
      pair.wait_for(ended(table.unpack(calls)))
      local count = close()
      assert.is_true(count >= 2 and count <= 12, count .. " connections in 1.2 s")
    end)

    it("to a server that loses it right after the log-in, as one does that a request crashes", function()
      local proxy = cut_proxy.new(server.port)
      local own = assert(pair.dial({ port = proxy.port, host_key = server.host_key }, { reconnect = true }))
      sleep(0.05)
      proxy.after = proxy.last.up + proxy.last.down + 40 -- in the request
      proxy:cut()
      local call = begin(own, "GET", "/hello", nil, { timeout = 1 })
      pair.wait_for(ended(call))
      own:close()
      proxy:close()
      assert.is_true(proxy.connections >= 2 and proxy.connections <= 12, proxy.connections .. " connections in 1 s")
    end)

    it("where a message is too long for the server, and a call beside it that was not run is sent again", function()
      local own = waiting.serve { max_message_bytes = 4096 }
      local proxy = cut_proxy.new(own.port)
      local caller = assert(pair.dial({ port = proxy.port, host_key = own.host_key }, { reconnect = true }))
      local long, short
      pair.in_luv_callback(function()
        long = begin(caller, "STORE", "/echo", ("x"):rep(20000), { timeout = 1 })
        short = begin(caller, "STORE", "/echo", "short", { timeout = 5 })
      end)
      pair.wait_for(ended(long, short))
      caller:close()
      proxy:close()
      assert.is_nil(long[1])
      assert.equal("short", short[1] and short[1].body, short[2])
      assert.is_true(proxy.connections <= 12, proxy.connections .. " connections in 1 s")
    end)

    it("with one connection at a time, though a call is made while it waits", function()
      waiting.kill(server)
      local first = begin(client, "GET", "/hello")
      pair.wait_for(function() return client.waiting end)
      local own = waiting.serve()
      local proxy = cut_proxy.new(own.port, server.port)
      proxy.delay_ms = 400
      local second = begin(client, "GET", "/hello")
      pair.wait_for(ended(first, second))
      sleep(0.3)
      client:close()
      proxy:close()
      assert.same({ "hello", "hello", 1 }, { first[1] and first[1].body, second[1] and second[1].body, proxy.connections })
    end)
  end)
end)

describe("a connection whose other end is dead", function()
  setup(pair.begin)
  teardown(pair.finish)

  local SLACK = 0.4

  it("is noticed by the client within three times its keepalive", function()
    local server = waiting.serve()
    local client = assert(pair.dial(server, { keepalive = KEEPALIVE }))
    local call = begin(client, "STORE", "/sleep?s=60")
    client:get "/hello"
    signal(server, "STOP")
    local seconds = waiting.time(function() pair.wait_for(ended(call)) end)
    signal(server, "CONT")
    assert.is_nil(call[1])
    assert.equal("ETIMEDOUT", call[3])
    assert.matches("no sign of life", call[2])
    if waiting.is_measured then assert.is_true(seconds <= 3 * KEEPALIVE + SLACK, seconds .. " s") end
  end)

  it("is noticed by a client that reconnects, and its GETs finish", function()
    local server = waiting.serve()
    local port = server.port
    local client = assert(pair.dial(server, { keepalive = KEEPALIVE, reconnect = true }))
    local call = begin(client, "GET", "/hello", nil, { timeout = 20 })
    pair.wait_for(ended(call))
    signal(server, "STOP")
    call = begin(client, "GET", "/hello", nil, { timeout = 20 })
    sleep(3 * KEEPALIVE)
    waiting.kill(server)
    waiting.serve { port = port }
    pair.wait_for(ended(call))
    assert.equal("hello", call[1] and call[1].body, call[2])
  end)

  for _, pairing in ipairs(raw_channel.pairings) do
    for what, resource in pairs { ["an endpoint waits"] = "/sleep?s=60", ["a stream goes out"] = "/items?bytes=50000" } do
      it(("is noticed by the server within three times its keepalive while %s, over %s"):format(what, pairing.name), function()
        local server = waiting.serve { keepalive = KEEPALIVE }
        local watcher = assert(pair.dial(server))
        local peer = assert(raw_channel.connect(server))
        local channel = peer:open_as(pairing)
        channel:request(('{"id":1,"verb":"GET","resource":"%s","stream":true}'):format(resource))
        sleep(0.1)
        local before = support.descriptors(server.pid)
        signal(peer.process, "STOP")
        local seconds = waiting.time(function()
          pair.wait_for(function() return support.descriptors(server.pid) <= before - 2 end)
        end)
        signal(peer.process, "KILL")
        if waiting.is_measured then assert.is_true(seconds <= 3 * KEEPALIVE + SLACK, seconds .. " s") end
        assert.matches("closed", watcher:get("/events").body[1])
      end)
    end
  end

  it("is not assumed where it is only silent, from either side", function()
    local server = waiting.serve { keepalive = KEEPALIVE }
    local quiet, checking = assert(pair.dial(server, { keepalive = 0 })), assert(pair.dial(server, { keepalive = KEEPALIVE }))
    local peer = assert(raw_channel.connect(server))
    local channel = peer:open "tcpip"
    sleep(6 * KEEPALIVE)
    assert.equal("hello", quiet:get("/hello").body)
    assert.equal("hello", checking:get("/hello").body)
    assert.equal(200, channel:ask(raw_channel.text("1", "GET", "/hello")).code)
  end)

  it("is never given up with keepalive = 0", function()
    local server = waiting.serve { keepalive = 0 }
    local peer = assert(raw_channel.connect(server))
    local channel = peer:open "tcpip"
    channel:ask(raw_channel.text("1", "GET", "/hello"))
    signal(peer.process, "STOP")
    sleep(4 * KEEPALIVE)
    signal(peer.process, "CONT")
    assert.equal(200, channel:ask(raw_channel.text("2", "GET", "/hello")).code)
  end)
end)
