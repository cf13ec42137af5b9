--- The limits of a server: what each refuses, with which answer, and that what is within them goes on.

local korv = require "korv"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local text = raw_channel.text

local running, most_running, began -- of /gate
local gates

local function add_endpoints(server)
  server:get("/hello", function() return 200, "hello" end)
  server:store("/length", function(request) return 200, #request.body end)
  server:get("/deep", function(request)
    local body = 1
    for _ = 1, request.body do body = { body } end
    return 200, body
  end)
  server:get("/long", function(request)
    began = began + 1
    return 200, ("x"):rep(request.body)
  end)
  server:get("/gate", function()
    began, running = began + 1, running + 1
    most_running = math.max(most_running, running)
    korv.await(function(resume) gates[#gates + 1] = resume end)
    running = running - 1
    return 200
  end)
  server:get("/pause", function()
    began, running = began + 1, running + 1
    most_running = math.max(most_running, running)
    korv.sleep(0.002)
    running = running - 1
    return 200
  end)
  return server
end

local function open_gates()
  for i, resume in ipairs(gates) do
    gates[i] = nil
    resume()
  end
end

local function new(options) return pair.listen(add_endpoints(pair.new_server(options))) end

local function turns(seconds) pair.in_task(function() korv.sleep(seconds) end) end

local function ids(n, make)
  local list = {}
  for i = 1, n do list[i] = make(tostring(i)) end
  return table.concat(list)
end

describe("the limits of a server", function()
  setup(pair.begin)
  before_each(function() running, most_running, began, gates = 0, 0, 0, {} end)
  teardown(pair.finish)

  for _, pairing in ipairs(raw_channel.pairings) do
    describe("over " .. pairing.name, function()
      local function open(options) return assert(raw_channel.connect(new(options))):open_as(pairing) end

      it("max_message_bytes: a longer message, unpacked, is a 413; a connection's other channels go on", function()
        local channel = open { max_message_bytes = 4096 }
        local beside = channel.peer:open_as(pairing)
        assert.equal(200, channel:ask(text("1", "STORE", "/length", '"' .. ("x"):rep(3900) .. '"')).code)
        local response = channel:ask(text("2", "STORE", "/length", '"' .. ("x"):rep(4200) .. '"'))
        assert.same({ 413, "0" }, { response.code, response.request_id })
        assert.equal(200, beside:ask(text("3", "GET", "/hello")).code)
      end)

      it("max_response_bytes: a longer answer is a 500 that says so", function()
        local channel = open { max_response_bytes = 4096 }
        assert.equal(200, channel:ask(text("1", "GET", "/long", "3900")).code)
        local response = channel:ask(text("2", "GET", "/long", "4200"))
        assert.same({ 500, "2" }, { response.code, response.request_id })
        assert.matches("larger than 4096 bytes", raw_channel.value(response).message)
        assert.equal(200, channel:ask(text("3", "GET", "/hello")).code)
      end)

      it("max_depth: deeper nesting is a 400 on its way in and a 500 on its way out", function()
        local channel = open { max_depth = 8 }
        assert.equal(400, channel:ask(text("1", "STORE", "/length", ("["):rep(8) .. ("]"):rep(8))).code)
        assert.equal(200, channel:ask(text("2", "GET", "/deep", "8")).code)
        local response = channel:ask(text("3", "GET", "/deep", "9"))
        assert.equal(500, response.code)
        assert.matches("more than 8 levels", raw_channel.value(response).message)
      end)

      it("max_in_flight: one more request on any connection is a 503, with its id, and none later", function()
        local own = new { max_in_flight = 3 }
        local first = assert(raw_channel.connect(own)):open_as(pairing)
        local second = assert(raw_channel.connect(own)):open_as(pairing)
        first:request(text("1", "GET", "/gate"), text("2", "GET", "/gate"), text("3", "GET", "/gate"))
        pair.wait_for(function() return began == 3 end)
        local response = second:ask(text("4", "GET", "/hello"))
        assert.same({ 503, "4" }, { response.code, response.request_id })
        assert.equal(503, first:ask(text("5", "GET", "/hello")).code)
        open_gates()
        first:expect(3)
        assert.equal(200, second:ask(text("6", "GET", "/hello")).code)
      end)

      it("max_in_flight_bytes: a request that makes it more is a 503, with its id; one at a time is taken, however long", function()
        local channel = open { max_in_flight_bytes = 4096 }
        local function long(id, verb, resource) return text(id, verb, resource, '"' .. ("x"):rep(5000) .. '"') end
        assert.equal(200, channel:ask(long("1", "STORE", "/length")).code)
        channel:request(long("2", "GET", "/gate"))
        pair.wait_for(function() return began == 1 end)
        local response = channel:ask(text("3", "GET", "/hello"))
        assert.same({ 503, "3" }, { response.code, response.request_id })
        assert.matches("Too many bytes", raw_channel.value(response).message)
        open_gates()
        channel:expect(1)
        assert.equal(200, channel:ask(text("4", "GET", "/hello")).code)
        began = 0
        channel:request(text("5", "GET", "/gate"), text("6", "GET", "/gate"))
        pair.wait_for(function() return began == 2 end)
        assert.equal(503, channel:ask(long("7", "STORE", "/length")).code)
        assert.equal(200, channel:ask(text("8", "GET", "/hello")).code)
        open_gates()
        channel:expect(2)
      end)

      it("max_channel_in_flight: the channel is not read, others are, and a pipeline runs at the speed of its endpoints", function()
        local channel = open { max_channel_in_flight = 5 }
        channel:stream(ids(60, function(id) return channel:message(text(id, "GET", "/pause")) end))
        local responses, seen = channel:expect(60), {}
        for _, response in ipairs(responses) do
          assert.equal(200, response.code)
          assert.is_nil(seen[response.request_id])
          seen[response.request_id] = true
        end
        assert.same({ 60, 5 }, { began, most_running })
        began = 0
        channel:stream(ids(10, function(id) return channel:message(text(id, "GET", "/gate")) end))
        pair.wait_for(function() return began == 5 end)
        assert.equal(200, channel.peer:open_as(pairing):ask(text("1", "GET", "/hello")).code)
        assert.equal(5, began)
        open_gates()
        pair.wait_for(function() return began == 10 end)
        open_gates()
        assert.equal(10, #channel:finish())
      end)

      it("max_queued_bytes: while a peer does not read, no more of its requests are begun; later all are answered in order", function()
        local peer = assert(raw_channel.connect(new { max_queued_bytes = 131072 }))
        local channel, beside = peer:open(pairing.way, { encoding = pairing.encoding, window = 32768 }), peer:open_as(pairing)
        channel:pause()
        channel:stream(ids(200, function(id) return channel:message(text(id, "GET", "/long", "10000")) end))
        for _ = 1, 20 do assert.equal(200, beside:ask(text("1", "GET", "/hello")).code) end
        -- deflate makes little of the answers: then it takes all of them to fill the queue
        if pairing.encoding == "line" then assert.is_true(began <= 20, began .. " began with room for 17") end
        channel:resume()
        for i, response in ipairs(channel:expect(200)) do assert.same({ 200, tostring(i) }, { response.code, response.request_id }) end
      end)

      it("max_turn_bytes: a channel decodes no more in one turn of the loop, and the others get theirs", function()
        local own = waiting.serve { max_turn_bytes = 65536 }
        local peer = assert(raw_channel.connect(own))
        local channel, beside = peer:open_as(pairing), peer:open_as(pairing)
        local message = channel:message(text("1", "STORE", "/turn", '"' .. ("x"):rep(16000) .. '"'))
        channel:stream(message:rep(200))
        assert.equal(200, beside:ask(text("2", "GET", "/hello")).code)
        channel:expect(200)
        local most = tonumber(beside:ask(text("3", "GET", "/turn")).body)
        assert.is_true(most <= 10, most .. " messages of 16000 bytes in one iteration of the loop, which is two turns")
      end)

      it("max_channels: one more of any kind is refused until another is closed", function()
        local peer = assert(raw_channel.connect(new { max_channels = 3 }))
        local list = { peer:open_as(pairing), peer:open_as(pairing), peer:open_as(pairing) }
        assert.is_nil((peer:try_open "tcpip"))
        assert.is_nil((peer:try_open "subsystem:korv"))
        for _, channel in ipairs(list) do assert.equal(200, channel:ask(text("1", "GET", "/hello")).code) end
        list[2]:finish()
        assert.equal(200, peer:open_as(pairing):ask(text("1", "GET", "/hello")).code)
      end)
    end)
  end

  it("max_message_bytes: only an over-long line is skipped, and the channel goes on; for at most the limit again", function()
    local peer = assert(raw_channel.connect(new { max_message_bytes = 4096 }))
    local channel = peer:open "subsystem:korv"
    assert.equal(413, channel:ask(text("1", "STORE", "/length", '"' .. ("x"):rep(5000) .. '"')).code)
    assert.equal(200, channel:ask(text("2", "GET", "/hello")).code)
    channel:send(("x"):rep(9000))
    assert.equal(413, channel:closed()[1].code)
  end)

  it("max_packed_bytes: a longer gzip member, packed, is a 413 and the channel is closed", function()
    local noise = {}
    for i = 1, 6000 do noise[i] = string.char(math.random(97, 122)) end
    local channel = assert(raw_channel.connect(new { max_packed_bytes = 2048 })):open("tcpip", { encoding = "gzip" })
    assert.equal(200, channel:ask(text("1", "STORE", "/length", '"' .. ("x"):rep(6000) .. '"')).code)
    channel:request(text("2", "STORE", "/length", '"' .. table.concat(noise) .. '"'))
    assert.equal(413, channel:closed()[1].code)
  end)

  it("a paused channel that is closed, or lost, still ends what runs on it", function()
    local peer = assert(raw_channel.connect(new { max_channel_in_flight = 2 }))
    local channel = peer:open "subsystem:korv"
    channel:stream(ids(5, function(id) return text(id, "GET", "/gate") .. "\n" end))
    pair.wait_for(function() return began == 2 end)
    channel:close()
    assert.equal(200, peer:open("subsystem:korv"):ask(text("1", "GET", "/hello")).code)
    open_gates()
    turns(0.05)
    assert.equal(2, began)
  end)

  describe("on connections", function()
    -- A connection that says nothing; `ended` once the server has ended it.
    local function silent(own)
      local one = { tcp = uv.new_tcp() }
      one.tcp:connect("127.0.0.1", own.port, function(problem)
        if problem then
          one.ended = problem
          return
        end
        one.tcp:read_start(function(_, bytes)
          if bytes then
            one.greeted = true
          else
            one.ended = true
            one.tcp:close()
          end
        end)
      end)
      return one
    end

    local function await_place(own)
      local client
      pair.wait_for(function()
        client = client or pair.dial(own)
        return client
      end)
    end

    it("max_connections: one more is closed at once, until another has ended", function()
      local own = new { max_connections = 2 }
      local first, second = assert(pair.dial(own)), assert(pair.dial(own))
      local third = silent(own)
      pair.wait_for(function() return third.ended end)
      assert.is_nil(third.greeted)
      assert.equal(200, second:get("/hello").code)
      first:close()
      await_place(own)
    end)

    it("max_unauthenticated: one more is closed at once, and who is logged in does not count", function()
      local own = new { max_unauthenticated = 2, login_timeout = 0.5 }
      for _ = 1, 3 do assert(pair.dial(own)) end
      local list = { silent(own), silent(own) }
      pair.wait_for(function() return list[1].greeted and list[2].greeted end)
      list[3] = silent(own)
      pair.wait_for(function() return list[3].ended end)
      assert.is_nil(list[3].greeted or list[1].ended or list[2].ended)
      pair.wait_for(function() return list[1].ended and list[2].ended end)
      assert.equal(200, assert(pair.dial(own)):get("/hello").code)
    end)

    it("login_timeout: who does not log in is put out, also in the middle of the key exchange", function()
      local own = new { login_timeout = 0.2 }
      local list = { silent(own), silent(own) }
      pair.wait_for(function() return list[2].greeted end)
      list[2].tcp:write "SSH-2.0-slow\r\n"
      local seconds = waiting.time(function() pair.wait_for(function() return list[1].ended and list[2].ended end) end)
      if waiting.is_measured then assert.is_true(seconds < 1, seconds .. " s") end
      pair.wait_for_log "no log%-in within 0%.2 s"
    end)

    it("max_auth_attempts: who tries more keys is put out", function()
      local own = new { max_auth_attempts = 3 }
      local strangers = {}
      for i = 1, 4 do strangers[i] = support.key("stranger" .. i) end
      assert.equal("EAUTH", select(3, pair.dial(own, { client_keys = strangers })))
      pair.wait_for_log "3 attempts to log in"
      assert(pair.dial(own, { client_keys = { strangers[1], support.key "client" } }))
    end)

    it("the soft limit of file descriptors is raised at start", function()
      local own = waiting.serve({}, { before = { "prlimit", "--nofile=256:4000" } })
      assert.matches("Max open files%s+4000%s+4000", support.read("/proc/" .. own.pid .. "/limits"))
    end)

    it("are no more than the file descriptors carry, two for each, with some to spare for endpoints", function()
      local own = waiting.serve({}, { before = { "prlimit", "--nofile=140:140" } })
      local clients, refused = {}, 0
      for i = 1, 60 do
        local one = pair.dial(own)
        if one then clients[#clients + 1] = one else refused = refused + 1 end
        if i == 1 then assert(one) end
      end
      assert.is_true(#clients >= 30 and refused >= 10, #clients .. " connected, " .. refused .. " refused")
      for _, one in ipairs(clients) do assert.equal(200, one:get("/hello").code) end
      local call = clients[1]:call("GET", "/exec", support.path "fd_pid", { callback = function() end })
      pair.wait_for(function() return support.read(support.path "fd_pid") end)
      call:cancel()
      clients[2]:close()
      await_place(own)
    end)
  end)

  it("are checked as options, and the message names which", function()
    for name, wrong in pairs { max_message_bytes = 0, max_packed_bytes = -1, max_response_bytes = 1, max_depth = 0,
      max_in_flight = 0, max_in_flight_bytes = 0, max_channel_in_flight = 0, max_turn_bytes = 0, max_queued_bytes = 1, max_connections = 0,
      max_unauthenticated = 0, max_channels = 0, max_auth_attempts = 0, login_timeout = 0, keepalive = -1, timeout = -1 } do
      local ok, message = pcall(function() pair.new_server { [name] = wrong }:listen() end)
      assert.is_false(ok, name .. " may be " .. wrong)
      assert.matches(name .. " must be ", message)
    end
  end)
end)
