--- What is read for a command: bytes into a body, with an echo where somebody types; and a caller that does not read it.

local commandline = require "korv.commandline"
local input = require "korv.input"

describe("korv.input", function()
  local function typed(...)
    local one = input.new(20000, true)
    local outcome
    for _, bytes in ipairs { ... } do outcome = outcome or one:feed(bytes) end
    return { outcome or "more", one:text(), one:take_echo() }
  end

  it("takes back a character, but not a line", function()
    assert.same({ "ended", "a\nc", "a\nbü\b \b\b \bc" }, typed("a\rb", "ü\127\127c\4"))
    assert.same({ "more", "a\n", "a\n" }, typed "a\r\127\b")
    assert.same({ "more", "\xff", "\xff\xfe\b \b" }, typed "\xff\xfe\127")
  end)

  it("passes over keys that mean nothing here", function()
    assert.same({ "more", "a[Ab ", "a[Ab " }, typed "a\27[A\0\1b\t")
  end)

  it("ends, gives up, and has a limit", function()
    assert.same({ "interrupted", "a", "a" }, typed "a\3b")
    assert.equal("too long", typed(("x"):rep(20001))[1])
    assert.equal("more", typed(("x"):rep(20000))[1])
    assert.equal(("x"):rep(5000) .. "y", typed(("x"):rep(5000), "\127y")[2])
    assert.equal("ended", input.new(10):feed(nil))
    assert.equal("too long", input.new(10):feed "12345678901")
  end)

  it("takes hardly more memory than what it gathers, however it comes", function()
    for _, case in ipairs { { "\r", true }, { "a\r", true }, { "\t", true }, { " ", false } } do
      local one = input.new(1 << 20, case[2])
      collectgarbage()
      local before = collectgarbage "count"
      for _ = 1, 1 << 17 do
        one:feed(case[1])
        one:take_echo()
      end
      collectgarbage()
      local bytes = (collectgarbage "count" - before) * 1024
      assert.equal(#case[1] << 17, #one:text())
      assert.is_true(bytes < 1.5 * #one:text(), ("%d bytes of %q take %.0f"):format(#one:text(), case[1], bytes))
    end
  end)
end)

describe("korv.commandline", function()
  it("reads no more of what is typed than its echo is read", function()
    local told, is_clogged = {}, false
    local caller = {
      write = function() return not is_clogged end,
      read = function(_, reads) told[#told + 1] = reads end,
      message = function() told[#told + 1] = "asked" end,
    }
    local handlers = commandline.open(caller, {}, "STORE /echo", { name = "dumb" }, { options = {} })
    handlers.opened()
    handlers.data "[1"
    handlers.drained()
    assert.same({ true }, told)
    is_clogged = true
    handlers.data ","
    assert.same({ true, false }, told)
    is_clogged = false
    handlers.drained()
    handlers.drained()
    assert.same({ true, false, true }, told)
    handlers.data "2]\4"
    assert.same({ true, false, true, true, "asked" }, told)
  end)
end)
