// Everything that is said by the page itself, in both languages.

const TEXTS = {
  en: {
    other: "中文",
    title: "Customer service",
    end: "End chat",
    hello: "How can we help?",
    helloMore: "Ask in English or Chinese. The assistant answers at once; a human agent is one tap away.",
    suggestions: ["Where is my order?", "How do I return an item?", "When do I get my refund?", "How can I pay?"],
    human: "Human agent",
    waiting: "Agent called",
    withAgent: "With an agent",
    write: "Write a message…",
    send: "Send",
    again: "Start a new conversation",
    newer: "New messages ↓",
    connecting: "Connecting…",
    open: "Online",
    waitingState: "Reconnecting…",
    offline: "You are offline",
    ended: "Conversation ended",
    served: "Served by",
    bot: "Assistant",
    agent: "Agent",
    user: "Customer",
    sending: "Sending…",
    today: "Today",
    rate_limited: "A little too fast; it will be sent in a moment.",
    unavailable: "The server is busy; it will be sent again in a moment.",
    console: "Agent console",
    none: "No conversations yet.",
    choose: "Choose a conversation.",
    join: "Join",
    leave: "Hand back",
    gate: "Agent token",
    enter: "Enter",
    deskBot: "assistant",
    deskWaiting: "wants an agent",
    deskAgent: "with an agent",
    joinFirst: "Join to reply",
    endedTag: "ended",
    confirmEnd: "End this conversation?",
  },
  zh: {
    other: "English",
    title: "在线客服",
    end: "结束对话",
    hello: "有什么可以帮您？",
    helloMore: "中文、英文都可以。智能助手即时回答，需要时一键转人工。",
    suggestions: ["我的订单在哪里？", "怎么退货？", "退款多久到账？", "支持哪些支付方式？"],
    human: "人工客服",
    waiting: "已呼叫人工",
    withAgent: "人工服务中",
    write: "请输入您的问题…",
    send: "发送",
    again: "开始新的对话",
    newer: "新消息 ↓",
    connecting: "正在连接…",
    open: "在线",
    waitingState: "正在重新连接…",
    offline: "网络已断开",
    ended: "对话已结束",
    served: "服务实例",
    bot: "智能助手",
    agent: "人工客服",
    user: "客户",
    sending: "发送中…",
    today: "今天",
    rate_limited: "发送太快了，稍后会自动重发。",
    unavailable: "服务器繁忙，稍后会自动重发。",
    console: "客服工作台",
    none: "还没有对话。",
    choose: "请选择一个对话。",
    join: "接入",
    leave: "交还助手",
    gate: "客服口令",
    enter: "进入",
    deskBot: "智能助手",
    deskWaiting: "等待人工",
    deskAgent: "人工服务中",
    joinFirst: "接入后可回复",
    endedTag: "已结束",
    confirmEnd: "确定结束本次对话吗？",
  },
};

const KEY = "holdfast-language";

function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export let language = remembered() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in TEXTS)) language = "en";

export const text = (name) => TEXTS[language][name];

export function apply() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
}

export function toggle() {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // Then it is chosen anew on the next visit.
  }
  apply();
}
