import com.alibaba.nacos.core.code.ControllerMethodsCache;
import javax.annotation.PostConstruct;
import org.springframework.beans.factory.annotation.Autowired;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.servlet.ServletComponentScan;
import org.springframework.context.annotation.ComponentScan;
import org.springframework.scheduling.annotation.EnableScheduling;

/** Nacos' naming server without its console, for tests. */
@SpringBootApplication
@ComponentScan("com.alibaba.nacos")
@ServletComponentScan("com.alibaba.nacos")
@EnableScheduling
public class NacosServer {
    @Autowired
    private ControllerMethodsCache methods;

    /** What the console does otherwise: without it every call over HTTP is answered 501. */
    @PostConstruct
    void register() {
        methods.initClassMethod("com.alibaba.nacos.core.controller");
        methods.initClassMethod("com.alibaba.nacos.naming.controllers");
        methods.initClassMethod("com.alibaba.nacos.plugin.auth.impl.controller");
    }

    public static void main(String[] arguments) {
        SpringApplication.run(NacosServer.class, arguments);
    }
}
