--- Streams: what an endpoint sends item by item, as the wire has it and as our client gives it. Readers that are slower than the sender
-- are in slow_reader_spec.lua.

local korv = require "korv"
local pair = require "spec.pair"
local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"
local waiting = require "spec.waiting"

local fields = waiting.fields

-- A request with `stream`, or with whatever fields.
local function text(resource, more)
  return ('{"id":1,"verb":"GET","resource":"%s","body":null%s}'):format(resource, more or ',"stream":true')
end

local noted -- what endpoints of this process did

local function note(name, ...) noted[name] = table.pack(...) end

local function on_close(name)
  return setmetatable({}, { __close = function() note(name) end })
end

local function add_endpoints(server)
  local function send_all(request, ...)
    for _, item in ipairs { ... } do request:send(item) end
  end
  server:get("/three", function(request)
    send_all(request, 1, "two", { three = 3 })
    return 200, "last"
  end)
  server:get("/just-ends", function(request) send_all(request, 1, 2) end)
  server:get("/no-items", function() return 200 end)
  server:get("/no-items-just-ends", function() end)
  server:get("/error", function(request)
    send_all(request, 1, 2)
    error "after two"
  end)
  server:get("/no-code", function(request)
    request:send(1)
    return "done"
  end)
  server:get("/abort", function(request)
    send_all(request, 1)
    korv.abort(409, { reason = "conflict" })
  end)
  server:get("/null", function(request) request:send(korv.null) return 200 end)
  server:get("/bad-item", function(request)
    request:send(1)
    note("bad item", pcall(function() request:send { when = { print } } end))
    request:send(2)
    return 200
  end)
  server:get("/much", function(request)
    for _ = 1, 100 do request:send(("x"):rep(1000)) end
    return 200
  end)
  server:get("/nearly-much", function(request)
    request:send(("x"):rep(2000))
    return 200, ("y"):rep(2000)
  end)
  server:get("/late", function(request)
    korv.spawn(function()
      korv.sleep(0.02)
      note("late", pcall(function() request:send(1) end))
    end)
    return 200, "done"
  end)
  server:get("/spawned", function(request)
    korv.await(function(resume)
      korv.spawn(function()
        send_all(request, 1, 2, 3)
        resume()
      end)
    end)
    return 200, "spawned"
  end)
  server:get("/spawned-much", function(request)
    korv.spawn(function()
      local ending <close> = on_close "spawned ended" -- luacheck: ignore
      while request:send(("x"):rep(20000)) do note "spawned sent" end -- false or an error, once the client has gone
    end)
    local closing <close> = on_close "spawned-much closed" -- luacheck: ignore
    korv.sleep(60)
  end)
  server:get("/for-ever", function(request)
    local closing <close> = on_close "for-ever closed" -- luacheck: ignore
    local i = 0
    while true do
      i = i + 1
      request:send(i)
      korv.sleep(0.001)
    end
  end)
  server:get("/exact", function(request)
    for _ = 1, 3 do request:send(("x"):rep(request.body)) end
    return 200
  end)
  server:get("/silent", function() korv.sleep(60) end)
  server:get("/hello", function() return 200, "hello" end)
  return server
end

local function all(client, resource, ...)
  local items, problem = {}, nil
  for item, message, name in client:stream("GET", resource, ...) do
    if message then
      problem = { item, message, name }
    else
      items[#items + 1] = item
    end
  end
  return items, problem
end

describe("a stream", function()
  local server, client

  setup(function()
    pair.begin()
    server = pair.listen(add_endpoints(pair.new_server()))
    client = assert(pair.dial(server))
  end)
  before_each(function() noted = {} end)
  teardown(pair.finish)

  for _, pairing in ipairs(raw_channel.pairings) do
    describe("over " .. pairing.name, function()
      local peer, channel

      setup(function() peer = assert(raw_channel.connect(server)) end)
      before_each(function() channel = peer:open_as(pairing) end)
      after_each(function() channel:order "close" end)

      local function ask(resource, n, more)
        channel:request(text(resource, more))
        local list = fields(channel, n)
        channel:request(text("/hello", ""))
        assert.equal('"hello"', fields(channel, 1)[1].body) -- and nothing more came of it
        for i, message in ipairs(list) do
          assert.same({ "1", i < n and "true" or nil }, { message.request_id, message.more })
        end
        return list
      end

      it("sends each item as a response with more, and then what the endpoint returned", function()
        local list = ask("/three", 4)
        assert.same({ "1", '"two"', '{"three":3}', '"last"' }, { list[1].body, list[2].body, list[3].body, list[4].body })
        for _, message in ipairs(list) do assert.equal("200", message.code) end
      end)

      it("ends with 200 and null where the endpoint returns nothing", function()
        local last = ask("/just-ends", 3)[3]
        assert.same({ "200", "null" }, { last.code, last.body })
      end)

      it("may have no items", function()
        local last = ask("/no-items", 1)[1]
        assert.same({ "200", "null" }, { last.code, last.body })
      end)

      it("may have no items and end with nothing: 200 and null", function()
        local last = ask("/no-items-just-ends", 1)[1]
        assert.same({ "200", "null" }, { last.code, last.body })
      end)

      it("ends with the error that the endpoint raised, behind the items before it", function()
        local list = ask("/error", 3)
        assert.equal("500", list[3].code)
        assert.matches("after two", list[3].body)
        assert.same({ "409", '{"reason":"conflict"}' }, { ask("/abort", 2)[2].code, ask("/abort", 2)[2].body })
      end)

      it("that is not asked for comes as one array, with what was returned as its last element", function()
        assert.equal('[1,"two",{"three":3},"last"]', ask("/three", 1, "")[1].body)
        assert.equal("[1,2]", ask("/just-ends", 1, "")[1].body)
        assert.equal("[1,2]", ask("/just-ends", 1, ',"stream":false')[1].body)
        assert.equal("[null]", ask("/null", 1, "")[1].body)
      end)

      it("that is not asked for is replaced by an error as a whole", function()
        local response = ask("/error", 1, "")[1]
        assert.equal("500", response.code)
        assert.matches("^{.*after two", response.body)
        assert.same({ "409", '{"reason":"conflict"}' }, { ask("/abort", 1, "")[1].code, ask("/abort", 1, "")[1].body })
        response = ask("/no-code", 1, "")[1]
        assert.equal("500", response.code)
        assert.matches("^{.*returned a string as its code", response.body)
      end)

      it("leaves out an item without a JSON form, which raises and names the path", function()
        assert.equal("[1,2]", ask("/bad-item", 1, "")[1].body)
        assert.is_false(noted["bad item"][1])
        assert.matches("stream_spec.lua:%d+: request:send: .*when%[1%]: a function has no JSON form", noted["bad item"][2])
        local list = ask("/bad-item", 3)
        assert.same({ "1", "2", "null" }, { list[1].body, list[2].body, list[3].body })
      end)

      it("goes on beside other requests of the channel", function()
        channel:request(text "/for-ever")
        fields(channel, 3)
        channel:request('{"id":2,"verb":"GET","resource":"/hello"}')
        local codes = {}
        for _, message in ipairs(fields(channel, 50)) do codes[message.request_id] = (codes[message.request_id] or 0) + 1 end
        assert.same({ 49, 1 }, { codes["1"], codes["2"] })
      end)

      it("is cancelled by a message, and ends with 499", function()
        channel:request(text "/for-ever", '{"cancel":1}')
        local message
        repeat message = fields(channel, 1)[1] until not message.more
        assert.equal("499", message.code)
        assert.is_truthy(noted["for-ever closed"])
      end)
    end)
  end

  describe("whose items are longer than max_response_bytes together", function()
    local own

    setup(function() own = assert(pair.dial(pair.listen(add_endpoints(pair.new_server { max_response_bytes = 3000 })))) end)

    it("is a 500 that names stream, where it was not asked for", function()
      pair.must_fail(own, "/much", "stream", "3000")
    end)

    it("with the returned body too", function()
      pair.must_fail(own, "/nearly-much", "stream")
    end)

    it("comes item by item, where it was", function()
      assert.equal(100, #all(own, "/much"))
    end)
  end)

  describe("of our client", function()
    it("is a loop over its items, in order", function()
      local items, problem = all(client, "/three")
      assert.same({ 1, "two", { three = 3 } }, items)
      assert.is_nil(problem)
      assert.same({}, all(client, "/no-items"))
    end)

    it("waits in a coroutine of korv's as it does where no loop runs", function()
      assert.equal(3, #pair.in_task(function() return (all(client, "/three")) end))
    end)

    it("ends with false, a message and a name where the endpoint fails", function()
      local items, problem = all(client, "/error")
      assert.same({ 1, 2 }, items)
      assert.equal(false, problem[1])
      assert.matches("^GET /error: 500 .*after two", problem[2])
      assert.equal("ESTATUS", problem[3])
      assert.matches("404", all(client, "/nowhere") and select(2, all(client, "/nowhere"))[2])
    end)

    it("cancels the endpoint when the loop is left", function()
      for item in client:stream("GET", "/for-ever") do
        if item == 3 then break end
      end
      pair.wait_for(function() return noted["for-ever closed"] end)
      assert.equal("hello", client:get("/hello").body)
    end)

    it("cancels the endpoint when the loop raises", function()
      assert.error_matches(function()
        for _ in client:stream("GET", "/for-ever") do error "enough" end
      end, "enough")
      pair.wait_for(function() return noted["for-ever closed"] end)
    end)

    it("calls back with each item and with nil at the end", function()
      local items, n = {}, 0
      client:stream("GET", "/three", nil, function(item)
        n = n + 1
        items[n] = item == nil and "the end" or item
      end)
      pair.wait_for(function() return n == 4 end)
      assert.same({ 1, "two", { three = 3 }, "the end" }, items)
    end)

    it("calls back with a failure", function()
      local told
      client:stream("GET", "/abort", nil, function(item, message, name)
        if item == false then told = { message, name } end
      end)
      pair.wait_for(function() return told end)
      assert.matches("409.*conflict", told[1])
      assert.equal("ESTATUS", told[2])
    end)

    it("with a callback is cancelled by its cancel", function()
      local items, ended = 0, nil
      local stream
      stream = client:stream("GET", "/for-ever", nil, function(item)
        items = items + 1
        if item == nil then ended = true end
        if items == 3 then stream:cancel() end
      end)
      pair.wait_for(function() return noted["for-ever closed"] and ended end)
      assert.equal(4, items)
    end)

    it("with a callback that raises is cancelled, and the log has the error", function()
      pair.logged = {}
      client:stream("GET", "/for-ever", nil, function() error "in a stream's callback" end)
      pair.wait_for_log "error .*in a stream's callback"
      pair.wait_for(function() return noted["for-ever closed"] end)
    end)

    it("ends at its timeout", function()
      local items, problem = all(client, "/silent", nil, { timeout = 0.05 })
      assert.same({}, items)
      assert.equal(false, problem[1])
      assert.matches("504", problem[2])
    end)

    it("ends at its timeout though the server says nothing", function()
      local own = waiting.serve()
      local caller, problem = assert(pair.dial(own)), nil
      support.run { "kill", "-STOP", tostring(own.pid) }
      korv.spawn(function() problem = select(2, all(caller, "/hello", nil, { timeout = 0.3 })) or "none" end)
      local ended = support.wait_for(function() return problem end, 2)
      support.run { "kill", "-CONT", tostring(own.pid) }
      assert.is_true(ended and true, "2 s later the loop still waits")
      assert.equal("ETIMEDOUT", problem[3])
    end)

    it("is told the loss of the connection", function()
      local own = waiting.serve()
      local problem, items = nil, 0
      korv.spawn(function()
        for item, message, name in assert(pair.dial(own)):stream("GET", "/items?bytes=10") do
          if item then items = items + 1 else problem = { message, name } end
        end
      end)
      pair.wait_for(function() return items > 0 end)
      waiting.kill(own)
      pair.wait_for(function() return problem end)
      assert.equal("ECONNRESET", problem[2])
    end)

    it("is told the loss of the connection while its channel is being opened", function()
      local own = waiting.serve()
      local caller, problem = assert(pair.dial(own)), nil
      support.run { "kill", "-STOP", tostring(own.pid) }
      korv.spawn(function() problem = select(2, all(caller, "/hello")) or "none" end)
      pair.in_task(function() korv.sleep(0.05) end)
      waiting.kill(own)
      assert.is_true(support.wait_for(function() return problem end, 2) and true, "2 s later the loop still waits")
      assert.equal("ECONNRESET", problem[3])
    end)

    it("may be one of 50 at once on one connection", function()
      waiting.together(50, function() assert.equal(3, #all(client, "/three")) end)
    end)

    it("past max_channels is refused with a message that says so, and the others go on", function()
      local own = assert(pair.dial(pair.listen(add_endpoints(pair.new_server { max_channels = 4 })), nil))
      local refusals, complete = {}, 0
      waiting.together(6, function()
        local items, problem = all(own, "/three")
        if problem then refusals[#refusals + 1] = problem[2] .. " " .. problem[3] else complete = complete + #items // 3 end
      end)
      assert.equal("hello", own:get("/hello").body)
      assert.same({ 3, 3 }, { complete, #refusals })
      assert.is_nil(refusals[1]:find "connection was lost", refusals[1])
    end)
  end)

  describe("in an endpoint", function()
    it("raises where it is sent to after the answer, and says so", function()
      assert.equal("done", client:get("/late").body)
      pair.wait_for(function() return noted.late end)
      assert.is_false(noted.late[1])
      assert.matches("stream_spec.lua:%d+: request:send: this request has been answered already", noted.late[2])
    end)

    it("may be fed by korv.spawn", function()
      assert.same({ 1, 2, 3 }, all(client, "/spawned"))
      assert.same({ 1, 2, 3, "spawned" }, client:get("/spawned").body)
    end)

    it("fed by korv.spawn that waits for a slow reader: the task ends when the client goes", function()
      local peer = assert(raw_channel.connect(server))
      local channel = peer:open("subsystem:korv", { window = 65536 })
      channel:pause()
      channel:request(text "/spawned-much")
      pair.in_task(function() korv.sleep(0.2) end)
      assert.is_truthy(noted["spawned sent"])
      assert.is_nil(noted["spawned ended"])
      peer.process:kill()
      pair.wait_for(function() return noted["spawned-much closed"] end)
      assert.is_true(support.wait_for(function() return noted["spawned ended"] end, 1) and true, "it waits for ever")
    end)

    it("of one channel goes on where max_channel_in_flight is reached", function()
      local own = pair.listen(add_endpoints(pair.new_server { max_channel_in_flight = 1 }))
      local channel = assert(raw_channel.connect(own)):open "subsystem:korv"
      channel:request(text "/three", text "/three")
      assert.equal(8, #fields(channel, 8, 2))
    end)

    it("goes on where what is queued is exactly max_queued_bytes", function()
      local own = pair.listen(add_endpoints(pair.new_server { max_queued_bytes = 65536 }))
      local channel = assert(raw_channel.connect(own)):open "subsystem:korv"
      channel:request '{"id":1,"verb":"GET","resource":"/exact","stream":true,"body":1000}'
      channel:request '{"id":1,"verb":"GET","resource":"/hello"}'
      local answer = channel:order("expect", { messages = 5 })
      local overhead = #answer.messages[1].text + 1 - 1000
      channel:request(('{"id":1,"verb":"GET","resource":"/exact","stream":true,"body":%d}'):format(65536 - overhead))
      assert.equal(4, #fields(channel, 4, 2))
    end)
  end)

  describe("that is a watch, as the example shows it,", function()
    local own, watcher

    setup(function()
      own = waiting.serve({}, { script = "scripts/endpoints/ticks.lua" })
      watcher = assert(pair.dial(own))
    end)

    local function watch(since, n)
      local items = {}
      for item, problem in watcher:stream("GET", "/events" .. (since and "?since=" .. since or "")) do
        assert(item, problem)
        items[#items + 1] = item
        if #items == n then break end
      end
      return items
    end

    it("is resumed where it was left, and says what was forgotten meanwhile", function()
      for i = 1, 3 do assert.equal(i, watcher:store("/events", "event " .. i).body.seq) end
      assert.same({ { seq = 2, event = "event 2" }, { seq = 3, event = "event 3" } }, watch(1, 2))
      for i = 4, 120 do watcher:store("/events", "event " .. i) end
      assert.same({ { truncated = true, missed = 17 }, { seq = 21, event = "event 21" } }, watch(3, 2))
    end)

    it("wakes for what is published", function()
      local got
      korv.spawn(function() got = watch(nil, 1) end)
      pair.in_task(function()
        while not got do
          watcher:store("/events", "new")
          korv.sleep(0.01)
        end
      end)
      assert.equal("new", got[1].event)
    end)

    it("has ticks", function() assert.same({ 1, 2, 3 }, watcher:get("/ticks?n=3&every=0.01").body) end)
  end)
end)

describe("a stream that is begun right behind a call", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("does not wait for its answer", function() -- the call's write may read the server's answer to the opening of the stream's channel
    local server = waiting.serve()
    for _ = 1, 20 do
      local client, order = assert(pair.dial(server)), {}
      client:call("GET", "/sleep?s=0.3", nil, { callback = function() order[#order + 1] = "answer" end })
      client:stream("GET", "/items?n=1", nil, function(item) order[#order + 1] = item and "item" or "end" end)
      pair.wait_for(function() return #order == 3 end)
      assert.same({ "item", "end", "answer" }, order)
      client:close()
    end
  end)
end)
