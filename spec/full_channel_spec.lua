--- A channel that is full, of requests or of answers: a cancel that comes next is carried out, and whatever else comes waits its turn.

local korv = require "korv"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"

local text = raw_channel.text

local began, gates, flooding

local function add_endpoints(server)
  server:get("/hello", function() return 200, "hello" end)
  server:get("/gate", function()
    began = began + 1
    korv.await(function(resume) gates[#gates + 1] = resume end)
    return 200
  end)
  server:get("/flood", function(request)
    local ended <close> = setmetatable({}, { __close = function() flooding = false end }) -- luacheck: ignore 211
    flooding = true
    for _ = 1, math.huge do request:send(("x"):rep(1000)) end
  end)
  return server
end

local function open_gates()
  local list = gates
  gates = {}
  for _, resume in ipairs(list) do resume() end
end

local function new(options) return pair.listen(add_endpoints(pair.new_server(options))) end

local function gate(id) return text(id, "GET", "/gate") end

local function cancel(id) return ('{"cancel":%s}'):format(id) end

-- Of answers, "ID CODE" of each.
local function told(answers)
  local list = {}
  for i, answer in ipairs(answers) do list[i] = answer.request_id .. " " .. answer.code end
  return list
end

local function sorted(list)
  table.sort(list)
  return list
end

for _, pairing in ipairs(raw_channel.every_pairing) do
  describe("a full channel over " .. pairing.name, function()
    local own, channel, beside

    setup(pair.begin)
    teardown(pair.finish)

    -- Two requests, of which there may be as many, are under way, and never end by themselves.
    before_each(function()
      began, gates, flooding = 0, {}, false
      own = new { max_channel_in_flight = 2, max_queued_bytes = 65536 }
      local peer = assert(raw_channel.connect(own))
      channel, beside = peer:open_as(pairing), peer:open_as(pairing)
      channel:request(gate "1", gate "2")
      pair.wait_for(function() return began == 2 end)
    end)

    -- What was sent before has come to the server.
    local function arrived() assert.equal(200, beside:ask(text("1", "GET", "/hello")).code) end

    local function packed(...)
      local list = {}
      for i, one in ipairs { ... } do list[i] = channel:message(one) end
      return table.concat(list)
    end

    it("heeds a cancel, and another", function()
      channel:request(cancel "1")
      assert.same({ "1 499" }, told(channel:expect(1)))
      channel:request(gate "3")
      pair.wait_for(function() return began == 3 end)
      channel:send(packed(cancel "7", ' { "more" : [{}], "\\u0063ancel" : 3 } ', cancel "2"))
      assert.same({ "2 499", "3 499" }, sorted(told(channel:expect(2))))
      assert.equal(200, channel:ask(text("4", "GET", "/hello")).code)
    end)

    it("heeds those between requests, each as the channel comes to it", function()
      channel:send(packed(cancel "1", gate "3", cancel "2", cancel "3", text("4", "GET", "/hello")))
      assert.same({ "1 499", "2 499", "3 499", "4 200" }, sorted(told(channel:expect(4))))
      assert.equal(3, began)
    end)

    it("heeds one that comes in pieces", function()
      local bytes = channel:message(cancel "1")
      channel:send_split(bytes, { 1, #bytes - 1 })
      assert.same({ "1 499" }, told(channel:expect(1)))
    end)

    it("lets a cancel wait behind a request", function()
      channel:request(gate "3", cancel "1")
      arrived()
      open_gates()
      assert.same({ "1 200", "2 200" }, sorted(told(channel:expect(2))))
      pair.wait_for(function() return began == 3 end)
      open_gates()
      assert.same({ "3 200" }, told(channel:expect(1)))
    end)

    it("lets a request wait that has a field `cancel`, and cancels nothing", function()
      channel:request '{"cancel":1,"id":3,"verb":"GET","resource":"/hello","body":null}'
      arrived()
      open_gates()
      assert.same({ "1 200", "2 200", "3 200" }, sorted(told(channel:expect(3))))
    end)

    for what, cut in pairs { ["in one packet"] = false, ["in pieces"] = true } do
      it("takes the request that waits, come " .. what .. ", when there is room, though nothing follows", function()
        local bytes = channel:message(gate "3")
        if cut then channel:send_split(bytes, { 1, 20, #bytes - 1 }) else channel:send(bytes) end
        arrived()
        assert.equal(2, began)
        open_gates()
        pair.wait_for(function() return began == 3 end)
        channel:expect(2)
        open_gates()
        assert.same({ "3 200" }, told(channel:finish()))
      end)
    end

    it("refuses what is wrong in its turn, and goes on", function()
      local bytes = channel:message "{"
      if pairing.encoding == "gzip" then -- its checksum
        local at = #bytes - 6
        bytes = bytes:sub(1, at - 1) .. string.char(bytes:byte(at) ~ 1) .. bytes:sub(at + 1)
      end
      channel:send(bytes .. channel:message(text("3", "GET", "/hello")))
      arrived()
      open_gates()
      local list = told(channel:expect(4))
      assert.same({ "0 400", "3 200" }, { list[3], list[4] })
      assert.equal(200, channel:ask(text("4", "GET", "/hello")).code)
    end)

    it("answers what waits at the end of the input, and what is cut off there", function()
      local bytes = channel:message(text("4", "GET", "/hello"))
      channel:send(packed(text("3", "GET", "/hello")) .. bytes:sub(1, #bytes - 3))
      channel:eof()
      arrived()
      open_gates()
      local list = told(channel:closed())
      assert.same({ "3 200", "0 400" }, { list[3], list[4] })
      assert.equal(4, #list)
    end)

    it("is at its end where nothing waits", function()
      channel:eof()
      arrived()
      open_gates()
      assert.same({ "1 200", "2 200" }, sorted(told(channel:closed())))
    end)

    it("may be closed while a request waits", function()
      channel:request(gate "3")
      arrived()
      channel:close()
      arrived()
      open_gates()
      arrived()
      assert.equal(2, began)
    end)

    it("refuses what waits where the server drains", function()
      channel:request(gate "3")
      arrived()
      own:drain(10)
      open_gates()
      assert.same({ "1 200", "2 200", "3 503" }, sorted(told(channel:closed())))
    end)

    it("leaves what waits to the server that replaces this one", function()
      channel:request(gate "3")
      arrived()
      own:leave_sockets()
      own:drain(10)
      open_gates()
      assert.same({ "1 200", "2 200" }, sorted(told(channel:closed())))
      assert.equal(2, began)
    end)

    it("closes where the server drains and nothing waits", function()
      own:drain(10)
      open_gates()
      assert.same({ "1 200", "2 200" }, sorted(told(channel:closed())))
    end)

    it("of answers that nobody reads heeds a cancel, too", function()
      local clogged = beside.peer:open(pairing.way, { encoding = pairing.encoding, window = 32768 })
      clogged:pause()
      clogged:request '{"id":1,"verb":"GET","resource":"/flood","stream":true}'
      pair.wait_for(function() return flooding end)
      arrived()
      clogged:request(cancel "1")
      pair.wait_for(function() return not flooding end)
      clogged:close()
    end)
  end)
end
