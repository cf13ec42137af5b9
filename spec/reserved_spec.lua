--- What endpoints find in a request besides a message's own fields, which no message can say; and channels that were full once.

local gates = require "spec.gates"
local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"

-- What the server answers to a message, as OpenSSH brings it.
local function ask(server, message)
  local done = support.run(support.ssh(server, {}, "-s", "127.0.0.1", "korv"), { stdin = message .. "\n" })
  return assert(korv.json.decode(done.stdout), done.stderr)
end

describe("a message", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("does not say what a request's params, query and send are, nor its peer", function()
    local server = pair.new_server()
    server:get("/who", function(request)
      request:send "an item"
      return 200, { user = request.params.user, query = next(request.query), name = request.peer.name }
    end)
    pair.listen(server)
    local answer = ask(server,
      [[{"id":1,"verb":"GET","resource":"/who","params":{"user":"root"},"query":{"a":"b"},"send":1,"peer":{"name":"x"}}]])
    assert.same({ 200, { "an item", { name = "client" } } }, { answer.code, answer.body })
  end)

  it("that cancels passes the limit of a channel that somebody types on", function()
    local server = pair.new_server { max_channel_in_flight = 1 }
    server:get("/wait", function() korv.sleep(60) return 200 end)
    pair.listen(server)
    local ssh = support.start(support.ssh(server, { "-tt" }, "127.0.0.1", "GET /wait"), { stdin = true, env = { TERM = "dumb" } })
    pair.wait_for(function() return server:counters().in_flight == 1 end)
    ssh:write "\3"
    assert.equal(4, ssh:wait().code) -- 499
  end)

  it("whose answer filled its channel once does not hold up a drain", function()
    for limit, bytes in pairs { max_queued_bytes = 600000, max_channel_in_flight = 10 } do
      local server = pair.new_server { [limit] = limit == "max_queued_bytes" and 65536 or 1 }
      server:get("/long", function() return 200, ("x"):rep(bytes) end)
      pair.listen(server)
      assert.equal(bytes, #assert(pair.dial(server):get "/long").body)
      local ended
      server:drain(60, function() ended = true end)
      pair.wait_for(function() return ended end)
    end
  end)

  it("that was not begun when the next server took over does not hold up a drain, and is not answered", function()
    local server = pair.new_server { max_channel_in_flight = 1 }
    server:get("/wait", function() return 200, gates.wait() end)
    pair.listen(server)
    local ssh = support.start(support.ssh(server, {}, "-s", "127.0.0.1", "korv"), { stdin = true })
    ssh:write '{"id":1,"verb":"GET","resource":"/wait"}\n{"id":2,"verb":"GET","resource":"/wait"}\n{"id":3'
    pair.wait_for(function() return server:counters().in_flight == 1 end)
    local ended
    server:leave_sockets()
    server:drain(60, function() ended = true end)
    gates.open()
    pair.wait_for(function() return ended end)
    local answer = assert(korv.json.decode(ssh:wait().stdout), ssh.stdout) -- there is one
    assert.same({ 1, 200, "through" }, { answer.request_id, answer.code, answer.body })
  end)
end)
