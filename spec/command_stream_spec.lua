--- korv stream: what it prints, when, and how it is ended.

local commanding = require "spec.commanding"
local support = require "spec.support"
local uv = require "luv"

local assert_complains = commanding.assert_complains

describe("korv stream", function()
  local server

  setup(function() server = commanding.serve(commanding.script()) end)
  teardown(support.finish)

  local function argv(...) return commanding.argv(server, ...) end

  local function stream(...) return support.run(argv("stream", ...)) end

  local function is_waiting(what) return support.run(argv("call", "GET", "/waiting")).stdout == ('"%s"\n'):format(what) end

  it("prints an item a line, and the body at the end, if there is one", function()
    local done = stream("GET", "/some?n=3")
    assert.same({ 0, "1\n2\n3\n", "" }, { done.code, done.stdout, done.stderr })
    done = stream("get", "/some?n=1&last=end")
    assert.same({ 0, '1\n"end"\n', "" }, { done.code, done.stdout, done.stderr })
    done = stream("STORE", "/echo", "-1")
    assert.same({ 0, "-1\n", "" }, { done.code, done.stdout, done.stderr })
  end)

  it("prints them as they come", function()
    local running = support.start(argv("stream", "GET", "/ticking"))
    for i = 1, 3 do assert.equal(("[%d]"):format(i), running:line()) end
    running:kill()
  end)

  it("ends as korv call does", function()
    local done = stream("GET", "/some?n=1&code=503&last=busy")
    assert.same({ 5, "1\n", '503 "busy"\n' }, { done.code, done.stdout, done.stderr })
    done = stream("GET", "/nowhere")
    assert.same({ 4, "", "404 null\n" }, { done.code, done.stdout, done.stderr })
    done = stream("GET", "nowhere")
    assert.same({ 4, "" }, { done.code, done.stdout })
    assert.matches("^404 null\nkorv: 'nowhere' does not begin with '/': did you mean '/nowhere'%?\n$", done.stderr)
    done = stream("--timeout", "0.1", "GET", "/some?n=1&sleep=60")
    assert.same({ 5, "1\n" }, { done.code, done.stdout })
    assert.matches("^504 ", done.stderr)
    assert_complains(stream("STORE", "/echo", "{"), 64, "not JSON")
    assert_complains(support.run { support.korv, "stream", "-i", support.key "client", "127.0.0.1:1", "GET", "/" }, 1, "refused")
  end)

  -- The stream's output goes into a pipe, as in a shell.
  for resource, lines in pairs { ["/ticking"] = 3, ["/quiet"] = 1 } do
    it(("cancels %s where its reader has had enough"):format(resource), function()
      local words = {}
      for i, word in ipairs(argv("stream", "GET", resource)) do words[i] = "'" .. word .. "'" end
      local running = support.start { "bash", "-c", ("%s | head -%d; echo ${PIPESTATUS[0]}"):format(table.concat(words, " "), lines) }
      for i = 1, lines do assert.equal(("[%d]"):format(i), running:line()) end
      running:wait(5)
      assert.same({ "0\n", "" }, { running.stdout, running.stderr })
      assert.is_true(support.wait_for(function() return is_waiting "nobody waits" end))
    end)
  end

  for _, way in ipairs { {}, { "--ssh" } } do
    it("cancels at Ctrl-C " .. table.concat(way), function()
      local running = support.start(commanding.concat({ "setsid" }, argv("stream", "GET", "/quiet"), way))
      assert.equal("[1]", running:line(), running.stderr)
      assert.is_true(is_waiting "/quiet")
      uv.kill(-running.pid, "sigint") -- a terminal signals all that run in its foreground
      running:wait(5)
      assert.equal(2, running.signal, running.stderr)
      assert.is_true(support.wait_for(function() return is_waiting "nobody waits" end))
    end)
  end
end)
