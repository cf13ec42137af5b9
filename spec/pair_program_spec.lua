--- Programs that use korv, with a server and a client in each: however they end, they end well.

local pair = require "spec.pair"
local support = require "spec.support"

local VALGRIND = { "valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
  "--suppressions=" .. support.root .. "/spec/valgrind.supp" }

describe("a server and a client", function()
  setup(pair.begin)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  describe("a program ends well", function()
    local BOTH = [[
      local folder = ...
      korv.log.level "warn"
      local server = assert(korv.server { host = "127.0.0.1", port = 0, host_keys = { folder .. "/host" },
        authorized_client_keys = folder .. "/client.pub", drain = 0.2 })
      server:get("/hello", function() return 200, "hello" end)
      server:get("/wait", function() korv.sleep(100) end)
      local function connect()
        return assert(korv.client { host = "127.0.0.1", port = server.port, client_keys = { folder .. "/client" }, known_hosts = false })
      end
    ]]
    local OPEN = BOTH .. [[
      server:listen()
      local client = connect()
      client:get("/wait", nil, print)
      korv.spawn(function() client:get "/wait" end)
      korv.spawn(function() connect():close() korv.sleep(50) end)
      client:store("/hello", ("x"):rep(1 << 20), function() end)
      print(client:get("/hello").body)
    ]]

    local function run(text, before)
      support.key "client"
      support.key "host"
      local done = pair.program(text, { support.path "." }, { before = before })
      assert.same({ 0, 0, "" }, { done.code, done.signal, done.stderr })
      return done.stdout
    end

    it("having collected the clients that were dropped without close, of which nothing stays", function()
      assert.equal("true\n", run(BOTH .. [[
        server:listen()
        local function handles() -- once what can go has gone
          for _ = 1, 50 do
            collectgarbage()
            uv.run "nowait"
            uv.sleep(2)
          end
          local count = 0
          uv.walk(function() count = count + 1 end)
          return count
        end
        connect()
        local before = handles()
        for _ = 1, 5 do connect() end
        print(handles() == before)]]))
    end)

    it("with everything still open", function() assert.equal("hello\n", run(OPEN)) end)

    it("with everything still open, under valgrind", function() assert.equal("hello\n", run(OPEN, VALGRIND)) end)

    for what, last in pairs {
      ["right after close() and stop()"] = "client:close() server:stop()",
      ["while a client connects"] = "korv.spawn(connect) korv.spawn(connect) uv.run 'once'",
      ["where a key is missing"] = "assert(not korv.client { client_keys = { 'nowhere' } })",
      ["where a port is taken"] = "local own = korv.server { host = '127.0.0.1', port = server.port, host_keys = { folder .. '/host' }, "
        .. "authorized_client_keys = folder .. '/client.pub' } assert(not own:listen())",
      ["by os.exit in a task"] = "korv.spawn(function() os.exit(0) end) korv.run()",
    } do
      it(what, function() assert.equal("hello\n", run(OPEN .. last)) end)
    end

    it("from korv.run once its calls are done, though the client is open", function()
      local other = support.serve "spec/data/app.lua"
      local done = pair.program([[
        local port, key = ...
        local client = assert(korv.client { host = "127.0.0.1", port = tonumber(port), client_keys = { key }, known_hosts = false })
        client:get("/hello", nil, function(response) print(response.body.msg) end)
        korv.run()
        print "end"]], { tostring(other.port), support.key "client" })
      assert.same({ "Hello World!\nend\n", "", 0 }, { done.stdout, done.stderr, done.code })
    end)

    it("from start() at SIGTERM, with a call under way", function()
      assert.equal("true\n", run(BOTH .. [[
        korv.spawn(function()
          connect():get("/wait", nil, function() end)
          korv.sleep(0.05)
          uv.kill(uv.os_getpid(), "sigterm")
        end)
        print(server:start())]]))
    end)

    it("where the modules are loaded a second time, and both go on", function()
      assert.equal("hello\nhello\nhello\n", run(OPEN .. [[
        for name in pairs(package.loaded) do
          if name:find "^korv" then package.loaded[name] = nil end
        end
        korv = require "korv"
        collectgarbage()
        print(client:get("/hello").body)
        print(connect():get("/hello").body)]]))
    end)
  end)
end)
