--- GET /korv/metrics of `korv serve`, of one worker and of several: what is counted is that of all.

local metered = require "spec.metered"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local find, parse, sum_of = metered.find, metered.parse, metered.sum_of

describe("metrics", function()
  setup(pair.begin)
  before_each(function() pair.logged = {} end)
  teardown(pair.finish)

  local function start(options, ...)
    local host_key = support.key "host"
    local argv = { support.korv, "serve", "--host", "127.0.0.1", "--port", "0", "--host-key", host_key,
      "--authorized-keys", support.authorized_keys "client", ... }
    local process = support.start(argv, options)
    process.port = tonumber((process:line() or ""):match "port (%d+)") or error(process:describe "does not listen")
    process.host_key = host_key
    return process
  end

  local HELLO = [[
    return function(app)
      local korv = require "korv"
      app:get("/hello", function() return 200 end)
      app:get("/pid", function() return 200, require "luv".os_getpid() end)
      app:get("/lines", function()
        for i = 1, 300 do korv.log.warn("%s", ("x"):rep(8000)) end
        return 200
      end)
    end]]

  it("tell of lines of the log that were dropped", function()
    local ends = assert(uv.pipe({ nonblock = false }, { nonblock = false }))
    local process = start({ stderr = ends.write }, support.write("hello.lua", HELLO))
    uv.fs_close(ends.write)
    local client = assert(pair.dial(process))
    assert.equal(0, client:get("/korv/metrics").body.workers[1].log_lines_dropped)
    client:get "/lines"
    assert.is_true(client:get("/korv/metrics").body.workers[1].log_lines_dropped > 100)
    process:kill()
    uv.fs_close(ends.read)
  end)

  describe("of workers", function()
    local process, clients

    -- A client of each worker.
    local function crew(count)
      local list = {}
      pair.wait_for(function()
        local client = assert(pair.dial(process))
        local number = client:get("/korv/health").body.worker
        if list[number] then client:close() else list[number] = client end
        return #list == count
      end)
      return list
    end

    before_each(function()
      process = start({}, "--workers", "3", "--log-format", "text", "--no-watch", support.write("hello.lua", HELLO))
      clients = crew(3)
    end)
    after_each(function() process:stop() end)

    local function hellos(all)
      local sums = {}
      for i, worker in ipairs(all.workers) do
        local endpoint = find(worker, "GET", "/hello")
        sums[i] = worker.worker .. ":" .. (endpoint and endpoint.codes["200"] or 0)
      end
      return table.concat(sums, " ")
    end

    it("are those of all, each labelled, whoever is asked; and one's own are of this moment", function()
      for number, client in ipairs(clients) do
        for _ = 1, number do client:get "/hello" end
      end
      assert.matches("3:3$", hellos(clients[3]:get("/korv/metrics").body))
      for _, client in ipairs(clients) do
        pair.wait_for(function() return hellos(client:get("/korv/metrics").body) == "1:1 2:2 3:3" end)
      end
      local families = parse(clients[2]:get("/korv/metrics?format=prometheus").body)
      assert.same({ 6.0, 3 }, { sum_of(families.korv_requests, "korv_requests_total", { resource = "/hello" }) })
      assert.same({ 2.0, 1 }, { sum_of(families.korv_requests, "korv_requests_total", { resource = "/hello", worker = "2" }) })
      assert.same({ 3.0, 3 }, { sum_of(families.korv_worker_starts, "korv_worker_starts_total") })
      assert.same({ 3.0, 3 }, { sum_of(families.korv_generation, "korv_generation") })
    end)

    it("are asked for once for all who want them at once", function()
      local answers = 0
      for _ = 1, 50 do
        clients[1]:get("/korv/metrics", nil, function(response)
          if response and response.code == 200 and #response.body.workers == 3 then answers = answers + 1 end
        end)
      end
      pair.wait_for(function() return answers == 50 end)
    end)

    it("have the reloads of all, counted once", function()
      uv.kill(process.pid, "sighup")
      pair.wait_for(function() return process.stderr:find "reloaded: generation 2" end)
      support.write("hello.lua", "broken")
      uv.kill(process.pid, "sighup")
      pair.wait_for(function() return process.stderr:find "not reloaded" end)
      assert.same({ done = 1, failed = 1 }, clients[1]:get("/korv/metrics").body.reloads)
    end)

    it("begin anew with the next process in a worker's place", function()
      clients[2]:get "/hello"
      uv.kill(clients[2]:get("/pid").body, "sigkill")
      pair.wait_for(function()
        local all = clients[1]:get("/korv/metrics").body
        local second = all.workers[2]
        return second and second.worker == 2 and second.starts == 2 and not find(second, "GET", "/hello")
      end)
    end)

    it("are 503 where the supervisor does not answer", function()
      uv.kill(process.pid, "sigstop")
      local answer = clients[1]:get "/korv/metrics"
      uv.kill(process.pid, "sigcont")
      assert.same({ 503, "the supervisor has not answered within 2 s" }, { answer.code, answer.body.message })
      assert.equal(200, clients[1]:get("/korv/metrics").code)
      assert.equal(200, clients[1]:get("/korv/health").code)
    end)
  end)
end)
